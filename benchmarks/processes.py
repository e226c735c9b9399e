"""One fit on several processes: time, memory, equality, bytes, and what happens when a process or a link is lost.

    python benchmarks/processes.py speed --data imagenette         # two processes against one, one thread each
    python benchmarks/processes.py bytes                           # counted on the loopback device, against the formula
    python benchmarks/processes.py killed --data imagenette        # kill -9 at five random moments, and a run that goes on
    python benchmarks/processes.py hosts --data imagenette         # two network namespaces; the link is cut for ten seconds
    python benchmarks/processes.py dask --data tiny-imagenet-200   # a probe on two workers, of which one is killed

``hosts`` makes network namespaces, for which it has to be root on Linux. ``--output`` writes the page of a section.
"""

import argparse
import copy
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from measure import data_option, machine, peak_memory, require_data, reset_peak_memory, status, table

ENCODERS = {
    "EfficientNet-Lite0": ("tf_efficientnet_lite0", "auto"),
    "ViT-S/14, untrained": ("vit_small_patch14_dinov2", None),
}
SIZE, VIEWS, PER_CLASS = 112, 3, 40


# ---- one process of a run ------------------------------------------------------------------------------------------------


def work(settings):
    """Fit as one of the processes, and write what came out."""
    import torch.distributed as dist

    from sklearn_clpdd import DSA, Checkpoint, CLPDistiller, FrozenEncoder
    from sklearn_clpdd.datasets import load_image_folder

    if "TORCHELASTIC_RUN_ID" not in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("gloo")
    if settings.get("points"):
        m, d = settings["points"]
        rng = np.random.default_rng(0)
        X, y, encoder = rng.normal(size=(2 * m, d)).astype(np.float32), np.arange(2 * m) % m, None
    else:
        X, y = load_image_folder(settings["data"], split="train")
        labels = np.unique(y)[slice(*settings.get("classes", (None,)))]
        chosen = np.concatenate([np.flatnonzero(y == label)[:PER_CLASS] for label in labels])
        X, y = X[chosen], y[chosen]
        name, weights = ENCODERS[settings["encoder"]]
        encoder = FrozenEncoder(name, weights=weights, image_size=SIZE, memory=settings.get("cache"))
        encoder.transform(X)  # so that the fit finds the features, and its memory is that of the steps
    before = status("VmRSS")
    reset_peak_memory()
    sent = {}

    def note(_, record):
        sent[record["step"]] = loopback_bytes()
        if settings.get("progress"):
            Path(settings["progress"]).write_text(str(record["step"]))

    distiller = CLPDistiller(
        encoder,
        augmentation=DSA(n_views=VIEWS),
        max_iter=settings["steps"],
        checkpoint=Checkpoint(settings["checkpoint"], every=5) if settings.get("checkpoint") else None,
        random_state=0,
        callback=note if "points" in settings or "progress" in settings else None,
    ).fit(X, y)
    rank = os.environ.get("RANK", "0")
    seconds = [record["seconds"] for record in distiller.history_]
    np.savez(f"{settings['output']}-{rank}.npz", X=distiller.X_synthetic_, loss=[one["loss"] for one in distiller.history_])
    steps = sorted(sent)
    facts = {
        "step": float(np.median(np.diff(seconds[2:]))) if len(seconds) > 4 else 0,
        "memory": peak_memory() - before,
        "whole": peak_memory(),
        "bytes": (sent[steps[-1]] - sent[steps[2]]) / (steps[-1] - steps[2]) if len(steps) > 3 else 0,
    }
    Path(f"{settings['output']}-{rank}.json").write_text(json.dumps(facts))


def loopback_bytes():
    """Bytes that the loopback device has sent."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next((int(line.split()[9]) for line in lines if line.strip().startswith("lo:")), 0)


def command(settings):
    return [__file__, "worker", json.dumps(settings)]


def run(settings, n, *, torchrun=True):
    """Run to the end on ``n`` processes with one thread each; return the results of all."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = [sys.executable] if n == 1 else [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={n}"]
    subprocess.run([*start, *command(settings)], check=True, env=environment, stderr=subprocess.DEVNULL)
    return results(settings, n)


def results(settings, n):
    output = settings["output"]
    return [(dict(np.load(f"{output}-{i}.npz")), json.loads(Path(f"{output}-{i}.json").read_text())) for i in range(n)]


def difference(one, other):
    """Largest difference of the images of two runs."""
    return float(np.abs(one[0]["X"] - other[0]["X"]).max())


# ---- sections --------------------------------------------------------------------------------------------------------------


def halves(settings):
    """Step of two processes that know nothing of each other, and have half of the classes each."""
    parts = [settings | {"classes": classes, "output": f"{settings['output']}-{classes[0]}"} for classes in ((0, 5), (5, 10))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [subprocess.Popen([sys.executable, *command(part)], env=environment) for part in parts]
    codes = [process.wait() for process in started]
    if any(codes):
        raise RuntimeError("a process has failed")
    return np.mean([results(part, 1)[0][1]["step"] for part in parts])


def speed(arguments, folder):
    """One process, two, and two that are independent, in turns."""
    rows = []
    for name, turns in zip(arguments.encoders, arguments.turns, strict=True):
        found, floor = {1: [], 2: []}, []
        for turn in range(turns):
            settings = {"data": str(arguments.data), "encoder": name, "steps": arguments.steps, "cache": str(folder / "cache")}
            for n in (1, 2):
                found[n].append(run(settings | {"output": str(folder / f"{n}-{turn}")}, n))
            floor.append(halves(settings | {"output": str(folder / f"half-{turn}")}))
        one, two = found[1][0][0], found[2][0]
        step = {n: np.median([facts[0][1]["step"] for facts in found[n]]) for n in (1, 2)}
        each = [a[0][1]["step"] / b[0][1]["step"] for a, b in zip(found[1], found[2], strict=True)]
        memory = {n: max(facts[1]["memory"] for facts in found[n][0]) for n in (1, 2)}
        whole = {n: max(facts[1]["whole"] for facts in found[n][0]) for n in (1, 2)}
        same = difference(one, two[0]), float(np.abs(one[0]["loss"] - two[0][0]["loss"]).max())
        rows.append(
            [
                name,
                f"{1e3 * step[1]:.0f} → {1e3 * step[2]:.0f} ms",
                f"**{step[1] / step[2]:.2f}** ({', '.join(f'{ratio:.2f}' for ratio in each)})",
                f"{1e3 * np.median(floor):.0f} ms, {step[1] / np.median(floor):.2f}",
                f"{memory[1]:.0f} → {memory[2]:.0f} MB, **{memory[2] / memory[1]:.2f}**",
                f"{whole[1]:.0f} → {whole[2]:.0f} MB",
                f"{same[0]:.1g}, {same[1]:.1g}",
                f"{difference(two[0], two[1]):.1g}",
            ]
        )
    intro = (
        f"`python benchmarks/processes.py speed`: one process and two, in turns, one torch thread each; 10 images, {VIEWS + 1} "
        f"views of {SIZE} px, {arguments.steps} steps, {10 * PER_CLASS} images of Imagenette; median steps; memory of a process "
        f"above that before the fit, and with torch and the network; the floor is the step of two processes that run beside each "
        f"other, exchange nothing, and have half of the classes each ({machine()})."
    )
    heads = [
        "encoder",
        "step",
        "speed",
        "floor",
        "memory of a process",
        "with torch",
        "largest difference of images, losses",
        "of ranks",
    ]
    return [intro, "", *table(heads, rows)]


def bytes_per_step(arguments, folder):
    """Bytes of a step on the loopback device, against the formula."""
    rows = []
    for n in (2, 4):
        for m, d in ((50, 256), (200, 256), (200, 1024)):
            settings = {"points": [m, d], "steps": 40, "output": str(folder / "bytes")}
            counted = np.mean([facts["bytes"] for _, facts in run(settings, n)]) / n
            formula = 4 * (n - 1) / n * m * d
            rows.append([n, m, d, f"{formula / 1e3:.1f}", f"{counted / 1e3:.1f}", f"{counted / formula:.2f}"])
    intro = (
        "`python benchmarks/processes.py bytes`: kilobytes that a process sends in a step of float32 features, by the formula "
        "4 (n − 1)/n · m k d for n processes, m images, k views of each (here 1) and d features; and as counted on the loopback "
        f"device, with the headers of TCP, the losses and the times ({machine()})."
    )
    return [intro, "", *table(["processes", "m k", "d", "formula", "counted", "ratio"], rows)]


@contextmanager
def processes(settings, n):
    """Start ``n`` processes without torchrun, whose agent would end all of them when one has ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(n):
        environment = {"WORLD_SIZE": str(n), "RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        started.append(
            subprocess.Popen(
                [sys.executable, *command(settings)],
                env={**os.environ, **environment, "OMP_NUM_THREADS": "1"},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        yield started
    finally:
        for process in started:
            process.kill()


def wait_for_step(settings, step, started):
    """Wait until the processes have made this step, or have ended."""
    path = Path(settings["progress"])
    while (not path.exists() or int(path.read_text() or 0) < step) and all(one.poll() is None for one in started):
        time.sleep(0.01)


def killed(arguments, folder):
    """Kill a process at random moments of its steps; the other one has to say so, and the next run to go on."""
    rng = random.Random(0)
    base = {"data": str(arguments.data), "encoder": "EfficientNet-Lite0", "steps": arguments.steps}
    whole = run(base | {"output": str(folder / "whole"), "checkpoint": str(folder / "whole.run")}, 2)
    rows = []
    for trial in range(5):
        settings = base | {
            "output": str(folder / f"killed-{trial}"),
            "checkpoint": str(folder / f"{trial}.run"),
            "progress": str(folder / f"progress-{trial}"),
        }
        after, victim = rng.randrange(1, arguments.steps - 2), rng.randrange(2)
        with processes(settings, 2) as both:
            wait_for_step(settings, after, both)
            time.sleep(rng.random() * 0.2)
            both[victim].send_signal(signal.SIGKILL)
            at = time.monotonic()
            said = both[1 - victim].communicate(timeout=120)[1].strip().splitlines()[-1]
            seconds = time.monotonic() - at
        n = 1 + trial % 2
        again = run(settings, n)
        rows.append([after, victim, f"{seconds:.1f} s", said[:160], n, f"{difference(whole[0], again[0]):.1g}"])
    intro = (
        f"`python benchmarks/processes.py killed`: two processes, of which one is killed by SIGKILL after a random step of "
        f"{arguments.steps}, without torchrun's agent, which would end the other one, too; the checkpoint is written every fifth "
        f"step, and the run goes on with one or two processes ({machine()})."
    )
    heads = ["step", "killed", "the other one ends after", "its last line", "goes on with", "largest difference of images"]
    return [intro, "", *table(heads, rows)]


def in_namespace(name, *line):
    return ["ip", "netns", "exec", name, *line]


@contextmanager
def two_hosts():
    """Two network namespaces that a veth pair connects."""
    names = ("clpdd-a", "clpdd-b")
    with ExitStack() as stack:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
            stack.callback(subprocess.run, ["ip", "netns", "del", name])
        subprocess.run(
            ["ip", "link", "add", "va", "netns", names[0], "type", "veth", "peer", "vb", "netns", names[1]], check=True
        )
        for name, device, address in zip(names, ("va", "vb"), ("10.99.0.1/24", "10.99.0.2/24"), strict=True):
            for line in (f"addr add {address} dev {device}", f"link set {device} up", "link set lo up"):
                subprocess.run(in_namespace(name, "ip", *line.split()), check=True)
        yield names


def on_hosts(names, settings, cut_after=None):
    """Run a process on each host; cut the link for ten seconds after this step. Return their exit codes and last lines."""
    started = []
    for i, (name, device) in enumerate(zip(names, ("va", "vb"), strict=True)):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
        torchrun += ["--rdzv-backend=c10d", "--rdzv-endpoint=10.99.0.1:29400", f"--local-addr=10.99.0.{i + 1}"]
        torchrun += [f"--rdzv-conf=is_host={1 - i}"]  # found out by the host's name otherwise
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": device}
        line = in_namespace(name, *torchrun, *command(settings))
        started.append(subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, text=True))
    if cut_after is not None:
        wait_for_step(settings, cut_after, started)
        subprocess.run(in_namespace(names[0], "ip", "link", "set", "va", "down"), check=True)
        time.sleep(10)
        subprocess.run(in_namespace(names[0], "ip", "link", "set", "va", "up"), check=True)
    said = [process.communicate(timeout=900)[1] for process in started]
    return [process.returncode for process in started], said


def hosts(arguments, folder):
    """Two hosts against one process, and the same with a link that is cut."""
    base = {"data": str(arguments.data), "encoder": "EfficientNet-Lite0", "steps": arguments.steps}
    alone = run(base | {"output": str(folder / "alone")}, 1)[0]
    rows = []
    with two_hosts() as names:
        for what, cut_after in (("undisturbed", None), ("link down for ten seconds", arguments.steps // 3)):
            settings = base | {"output": str(folder / f"hosts-{cut_after}"), "progress": str(folder / f"hosts-{cut_after}.step")}
            at = time.monotonic()
            codes, said = on_hosts(names, settings, cut_after)
            if any(codes):
                errors = [line for text in said for line in text.splitlines() if "Error" in line]
                rows.append([what, f"{time.monotonic() - at:.0f} s", f"ended: {errors[:1]}", ""])
            else:
                both = results(settings, 2)
                same = [f"{difference(alone, one):.1g}" for one in both]
                rows.append([what, f"{time.monotonic() - at:.0f} s", "finished", ", ".join(same)])
    intro = (
        f"`python benchmarks/processes.py hosts`: two network namespaces with a veth pair, a `torchrun` in each that meet at a "
        f"c10d rendezvous, {arguments.steps} steps ({machine()})."
    )
    return [intro, "", *table(["", "time with start", "outcome", "largest difference to one process, of each host"], rows)]


# ---- a probe on Dask ---------------------------------------------------------------------------------------------------------


def dask_probe(arguments, folder):
    """Coefficients of a probe on two workers, of which one is killed, against one `fit`."""
    from dask import bag
    from dask.distributed import Client, LocalCluster

    from sklearn_clpdd import ClosedFormProbe, FrozenEncoder
    from sklearn_clpdd.datasets import load_image_folder

    X, y = map(np.concatenate, zip(*(load_image_folder(arguments.data, split=split) for split in ("train", "val")), strict=True))
    order = np.random.default_rng(0).permutation(len(X))[:10_000]
    X, y, classes = X[order], y[order], np.unique(y)
    encoder = FrozenEncoder(image_size=64, memory=folder / "cache")
    log = folder / "encoded"
    log.mkdir()

    def statistics(rows):
        from sklearn_clpdd.encoder._extractor import FeatureExtractor

        own, encode = np.array(list(rows)), FeatureExtractor._encode

        def counted(self, images, indices, *rest):
            Path(log, f"{time.time_ns()}").write_text(str(len(indices)))
            return encode(self, images, indices, *rest)

        FeatureExtractor._encode = counted
        try:
            return ClosedFormProbe(alpha=1.0).partial_fit(encoder.transform(X[own]), y[own], classes=classes)
        finally:
            FeatureExtractor._encode = encode

    def total(probes):
        first, *others = copy.deepcopy(list(probes))
        for other in others:
            first.merge(other)
        return first

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        at = time.monotonic()
        partitions = bag.from_sequence(range(len(X)), npartitions=40)
        future = client.compute(partitions.reduction(statistics, total, split_every=4))
        while sum(1 for _ in log.iterdir()) < 20:
            time.sleep(0.05)
        encoded_before = sum(int(path.read_text() or 0) for path in log.iterdir())
        os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)
        probe = future.result()
        seconds = time.monotonic() - at
    encoded = sum(int(path.read_text() or 0) for path in log.iterdir())
    whole = ClosedFormProbe(alpha=1.0).fit(encoder.transform(X), y)
    rows = [
        [
            f"{len(X):,}",
            f"{encoded_before:,}",
            f"{encoded:,}",
            f"{np.abs(probe.coef_ - whole.coef_).max():.1g}",
            f"{np.abs(whole.coef_).max():.1g}",
            f"{seconds:.0f} s",
        ]
    ]
    intro = (
        f"`python benchmarks/processes.py dask`: 40 partitions of {arguments.data.name} on two workers, of which one is killed "
        f"by SIGKILL; the features are cached (`memory=`), so that finished partitions are not encoded again ({machine()})."
    )
    heads = ["images", "encoded before", "encoded in total", "largest difference of coefficients", "largest coefficient", "time"]
    return [intro, "", *table(heads, rows)]


SECTIONS = {"speed": speed, "bytes": bytes_per_step, "killed": killed, "hosts": hosts, "dask": dask_probe}


def main():
    if sys.argv[1:2] == ["worker"]:
        work(json.loads(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("section", choices=SECTIONS)
    data_option(parser)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--turns", type=int, nargs="+", default=[3, 1], help="repetitions of speed for each encoder")
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS), choices=ENCODERS)
    parser.add_argument("--output", type=Path, help="folder for the page")
    arguments = parser.parse_args()
    if arguments.section != "bytes":
        require_data(parser, arguments)
    with tempfile.TemporaryDirectory() as folder:
        page = "\n".join(SECTIONS[arguments.section](arguments, Path(folder)))
    print(page)
    if arguments.output:
        (arguments.output / f"processes-{arguments.section}.md").write_text(page + "\n")


if __name__ == "__main__":
    main()
