"""Images distilled with one encoder, with another, and with both, evaluated with a third; and the third one's own images.

    python benchmarks/encoders.py DATA [--size 112] [--seconds 120] [--seeds 1] [--learning-rate 0.05]

Both encoders together have the same time as one alone, and in another run twice the time, which gives about as many steps as one
encoder alone. The last row has images that were distilled with the third encoder itself: what there is to gain for the probes
that are trained on the images. The inherited probe is that of all real images behind the first encoder, which the third one
reaches through a map that is fitted to views of the images. The script writes benchmarks/results/encoders-<name of DATA>.md, and
all figures to a .json file; runs that it contains are not repeated.
"""

from pathlib import Path

import numpy as np
from measure import format_mean, machine, recorded, study_parser, top1, train_and_test, write_page

from sklearn_clpdd import ClosedFormProbe, CLPDistiller, FrozenEncoder
from sklearn_clpdd.evaluation import closed_form_probe_scores, inherited_probe_scores, sgd_probe_scores


def main(arguments):
    data = train_and_test(arguments.folder)
    X, y, *test = data
    name = f"encoders-{arguments.folder.name}"
    path = arguments.results / f"{name}.json"
    cache = str(arguments.results / "cache")

    def encoder(name):
        return FrozenEncoder(name, image_size=arguments.size, n_jobs=-1, memory=cache)

    def measured(names, seconds, seed):
        settings = {"data": arguments.folder.name, "encoders": names, "unseen": arguments.unseen, "size": arguments.size}
        settings |= {"seconds": seconds, "seed": seed, "learning_rate": arguments.learning_rate}

        def work():
            given = [encoder(name) for name in names]
            budget = {"time_budget": seconds, "max_iter": 10**7, "learning_rate": arguments.learning_rate}
            fitted = CLPDistiller(given if len(given) > 1 else given[0], random_state=seed, **budget).fit(X, y)
            sets = (fitted.transform(), fitted.y_synthetic_, *test)
            unseen = encoder(arguments.unseen)
            scores = {"closed_form": closed_form_probe_scores(*sets, encoder=unseen)}
            scores["sgd"] = sgd_probe_scores(*sets, encoder=unseen, random_state=seed)
            probe = ClosedFormProbe().fit(encoder(arguments.encoders[0]).encode(X), y)
            old = {"probe": probe, "probe_encoder": encoder(arguments.encoders[0])}
            scores["inherited"] = inherited_probe_scores(sets[0], *test, **old, encoder=unseen, random_state=seed)
            own = {name: top1({"closed_form": closed_form_probe_scores(*sets, encoder=encoder(name))}) for name in names}
            return {"steps": fitted.n_iter_, "top1": top1(scores), "own": own}

        return recorded(path, settings, work)

    rows = []
    choices = [([name], arguments.seconds) for name in arguments.encoders]
    choices += [(arguments.encoders, arguments.seconds * times) for times in (1, len(arguments.encoders))]
    choices += [([arguments.unseen], arguments.seconds)]
    for names, seconds in choices:
        records = [measured(names, seconds, seed) for seed in range(arguments.seeds)]
        values = [[record["top1"][protocol] for record in records] for protocol in ("closed_form", "sgd", "inherited")]
        steps = sum(record["steps"] for record in records) / len(records)
        own = [np.mean([record["own"][name]["closed_form"] for record in records]) for name in names]
        rows.append(
            [
                " + ".join(names),
                f"{seconds:g}",
                f"{steps:.0f}",
                *map(format_mean, values),
                " / ".join(f"{one:.3f}" for one in own),
            ]
        )
    intro = (
        f"`{arguments.folder.name}`, one image per class, under {arguments.unseen}, which only the last row's run has seen; "
        f"views of {arguments.size} px; {arguments.seeds} seed(s); {machine()}; `python benchmarks/encoders.py DIR "
        f"--size {arguments.size} --seconds {arguments.seconds:g} --seeds {arguments.seeds} "
        f"--learning-rate {arguments.learning_rate:g}`"
    )
    heads = [
        "distilled with",
        "seconds of steps",
        "steps",
        "closed-form probe",
        "LGM's protocol",
        f"inherited probe of {arguments.encoders[0]}",
        "closed-form probe, own encoders",
    ]
    write_page(arguments.results, name, intro, heads, rows)


if __name__ == "__main__":
    parser = study_parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--encoders", nargs="+", default=["tf_efficientnet_lite0", "tf_efficientnet_lite1"])
    parser.add_argument("--unseen", default="tf_efficientnet_lite2")
    main(parser.parse_args())
