"""Half precision inside the network: whether features and gradients agree with float32's, and whether it matters to the images.

    python benchmarks/precision.py [SECTION ...] [--data DIR] [--output DIR]

``agreement``: cosines of features and input gradients in bfloat16 with those in float32, on crops of photos, for several networks
(weights of installed packages, or untrained). ``blame``: which layers make Lite0's disagree. ``accuracy``: test accuracy of
images distilled through EfficientNet-Lite0 in float32 and in bfloat16, after equal numbers of steps, three seeds, on DIR/train
and DIR/val at 112 px. ``training``: a small vision transformer is trained on DIR/train for minutes, and images are distilled
through it in both precisions.

Where the CPU has no instructions for bfloat16, the network computes in float32, and every value that a layer takes or returns is
rounded to bfloat16, and every gradient, too (`Rounded`), which takes a tenth of the time; ``agreement`` says how close that is.
DIR is ``$SKLEARN_CLPDD_DATA/imagenette`` by default.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from measure import RESULTS, data_option, format_mean, machine, recorded, require_data, table, train_and_test
from torch import nn

from sklearn_clpdd import ClosedFormProbe, CLPDistiller, FrozenEncoder
from sklearn_clpdd.encoder import _precision as precision
from sklearn_clpdd.encoder._backbone import Backbone
from sklearn_clpdd.encoder._copying import copy_module
from sklearn_clpdd.encoder.sources._names import BACKBONES
from sklearn_clpdd.encoder.sources._timm import create_module

CPU = torch.device("cpu")
NETWORKS = ["tf_efficientnet_lite0", "tf_efficientnet_lite1", "resnet50", "convnext_tiny", "vit_small_patch14_dinov2"]
NETWORKS += ["vit_base_patch16_224"]
TRAINED = NETWORKS[:2]


class _Round(torch.autograd.Function):
    """To bfloat16 and back, in the passes ``forward`` and ``backward`` or in one of them."""

    @staticmethod
    def forward(ctx, x, passes):
        ctx.passes = passes
        return x.bfloat16().float() if "forward" in passes else x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.bfloat16().float() if "backward" in ctx.passes else gradient, None


BOTH = ("forward", "backward")


def rounded(module, passes=BOTH, exact=()):
    """A copy of a module that computes in float32 what it would compute in bfloat16, up to the order of sums.

    Layers whose names begin with one of ``exact`` are not rounded.
    """

    def after(layer, inputs, output):
        return _Round.apply(output, passes) if isinstance(output, torch.Tensor) else output

    def before(layer, inputs):
        return tuple(_Round.apply(one, passes) if isinstance(one, torch.Tensor) else one for one in inputs)

    copied = copy_module(module)
    for name, layer in copied.named_modules():
        if isinstance(layer, nn.LayerNorm) or not name or name.startswith(tuple(exact)):
            continue  # autocast leaves layer norms in float32
        for tensor in (*layer.parameters(recurse=False), *layer.buffers(recurse=False)):
            if tensor.is_floating_point() and "forward" in passes:
                tensor.data = tensor.data.bfloat16().float()
        layer.register_forward_pre_hook(before)
        layer.register_forward_hook(after)
    return copied


class Rounded(precision.Precisions):
    """A network whose bfloat16 is rounded float32."""

    def run(self, images, precision):
        """Output of the network."""
        if precision != "bfloat16":
            return super().run(images, precision)
        if "rounded" not in self._casts:
            with torch.inference_mode(False):
                self._casts["rounded"] = rounded(self.module)
        return self._casts["rounded"](images)


def round_instead(extractor):
    """Make a loaded network round; its gradients then are in bfloat16."""
    backbone = extractor.backbone
    if not isinstance(backbone.precisions, Rounded):
        backbone.precisions = Rounded(backbone.module, backbone.device)
        backbone.precisions._chosen[False] = "float32"


def distilled(encoder, X, y, X_test, y_test, gradient, **parameters):
    """Test accuracy and seconds of the steps, with gradients in a precision."""
    backbone = encoder.load().backbone
    backbone.precisions._chosen = {False: "float32", True: gradient}
    distiller = CLPDistiller(encoder, **parameters).fit(X, y)
    return {"accuracy": distiller.score(X_test, y_test), "seconds": distiller.history_[-1]["seconds"]}


def agreement(arguments):
    rows = []
    for name in NETWORKS:
        weights = "auto" if name in TRAINED else None
        extractor = FrozenEncoder(name, weights=weights, image_size=arguments.size, device="cpu").load()
        backbone = extractor.backbone
        images = precision.photo_crops(backbone.preprocessing, arguments.images)
        cells = [f"`{name}`", "trained" if weights else "untrained"]
        for precisions in (backbone.precisions, Rounded(backbone.module, CPU)):
            backbone.precisions = precisions
            gradients = partial(precision._gradients, directions=precision._directions(backbone, images))
            for seen in (precision._features, gradients):
                cosines = precision.cosines(seen(backbone, images, "bfloat16"), seen(backbone, images, "float32"))
                cells.append(f"{cosines.min():.4f}")
        rows.append(cells)
        print(cells, flush=True)
    heads = [f"{arguments.size} px, {arguments.images} crops of photos", "weights", "features", "gradients"]
    return table([*heads, "rounded: features", "gradients"], rows)


def blame(arguments):
    """Where the gradients of EfficientNet-Lite0 lose their agreement."""
    backbone = FrozenEncoder(image_size=arguments.size, device="cpu").load().backbone
    images = precision.photo_crops(backbone.preprocessing, arguments.images)
    directions = precision._directions(backbone, images)
    wanted = precision._gradients(backbone, images, "float32", directions)
    plain = create_module(BACKBONES["tf_efficientnet_lite0"], "auto", None, {}).eval().requires_grad_(False)
    folded = backbone.module
    ways = {"everything in bfloat16": rounded(folded)}
    ways["the same, batch norms not folded"] = rounded(plain)
    ways |= {f"only the {one} pass": rounded(folded, (one,)) for one in BOTH}
    rectifiers = [name for name, layer in folded.named_modules() if isinstance(layer, nn.Hardtanh)]
    for title, exact in {
        "all but the stem": ["conv_stem", "bn1", "act1"],
        "all but the first two stages": ["conv_stem", "bn1", "act1", "blocks.0", "blocks.1"],
        "all but the first four stages": ["conv_stem", "bn1", "act1", *(f"blocks.{i}" for i in range(4))],
        "all but the last three stages": ["blocks.4", "blocks.5", "blocks.6", "conv_head", "bn2"],
    }.items():
        ways[title] = rounded(folded, BOTH, exact)
    rows = []
    for title, module in ways.items():
        network = Backbone(module, backbone.preprocessing, backbone.n_features, CPU)
        cosines = precision.cosines(precision._gradients(network, images, "float32", directions), wanted)
        rows.append([title, f"{cosines.min():.3f}", f"{cosines.mean():.3f}"])
    masks = [[], []]
    for module, seen in zip((folded, rounded(folded)), masks, strict=True):
        for name in rectifiers:
            module.get_submodule(name).register_forward_hook(lambda layer, x, y, seen=seen: seen.append((y > 0) & (y < 6)))
        with torch.no_grad():
            Backbone(module, backbone.preprocessing, backbone.n_features, CPU)(images)
    flipped = np.mean([(one != other).float().mean().item() for one, other in zip(*masks, strict=True)])
    yield from table(["EfficientNet-Lite0", "least cosine with float32's gradient", "mean"], rows)
    yield ""
    yield f"In bfloat16, {100 * flipped:.1f} % of the {len(rectifiers)} rectifiers' derivatives are others (0 for 1, or 1 for 0)."


def compared(encoder, sets, arguments, name):
    """Table of test accuracies; the runs are recorded, so that an interrupted study goes on."""
    rows = []
    for steps in arguments.steps:
        found = {one: [] for one in ("float32", "bfloat16")}
        for seed in range(arguments.seeds):
            for one, accuracies in found.items():
                settings = {"network": name, "steps": steps, "seed": seed, "gradients": one, "size": arguments.size}
                work = partial(distilled, encoder, *sets, one, max_iter=steps, random_state=seed)
                accuracies.append(recorded(arguments.records, settings, work)["accuracy"])
        difference = np.mean(found["bfloat16"]) - np.mean(found["float32"])
        rows.append([steps, *map(format_mean, found.values()), f"{difference:+.4f}"])
    return table(["steps", "gradients in float32", "in bfloat16", "difference"], rows)


def accuracy(arguments):
    encoder = FrozenEncoder(image_size=arguments.size, n_jobs=-1, memory=arguments.memory, dtype="auto", device="cpu")
    if not precision.candidates(CPU):
        round_instead(encoder.load())
    return compared(encoder, train_and_test(arguments.data), arguments, "tf_efficientnet_lite0")


def training(arguments):
    """A vision transformer of 64 px and 8 px patches, trained with random crops and flips."""
    X, y, X_test, y_test = train_and_test(arguments.data)
    classes, codes = np.unique(y, return_inverse=True)
    torch.manual_seed(0)
    options = {"img_size": 64, "patch_size": 8, "embed_dim": 192, "depth": 6, "num_heads": 3, "global_pool": "avg"}
    network = timm.create_model("vit_tiny_patch16_224", num_classes=len(classes), drop_path_rate=0.1, **options)
    loader = FrozenEncoder(nn.Flatten(), image_size=72, n_jobs=-1, l2_normalize=False)
    pixels = torch.from_numpy(loader.transform(X)).view(len(X), 3, 72, 72)
    codes = torch.from_numpy(codes)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.05)
    begin, step, total = time.perf_counter(), 0, arguments.seconds
    network.train()
    while (done := (time.perf_counter() - begin) / total) < 1:
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1, 20 * done) * (1 - done)
        rows = torch.randint(len(X), (128,))
        top, left = torch.randint(9, (2,)).tolist()
        batch = pixels[rows, :, top : top + 64, left : left + 64]
        batch = batch.flip(3) if torch.rand(()) < 0.5 else batch
        loss = F.cross_entropy(network(2 * batch - 1), codes[rows], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
    network.eval().reset_classifier(0)
    encoder = FrozenEncoder(
        network,
        image_size=64,
        crop_pct=64 / 72,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        n_jobs=-1,
        memory=arguments.memory,
        device="cpu",
    )
    backbone = encoder.load().backbone
    probe = ClosedFormProbe().fit(encoder.transform(X), y)
    full = probe.score(encoder.transform(X_test), y_test)
    if not precision.candidates(CPU):
        round_instead(encoder.load())
    images = precision.photo_crops(backbone.preprocessing, arguments.images)
    directions = precision._directions(backbone, images)
    cosine = precision.cosines(
        *(precision._gradients(backbone, images, one, directions) for one in ("bfloat16", "float32"))
    ).min()
    yield f"{step} steps of training in {total:.0f} s. All real images: {full:.3f}. Least cosine of gradients: {cosine:.4f}."
    yield ""
    yield from compared(encoder, (X, y, X_test, y_test), arguments, backbone.weights_sha256)


# What the title of a page says besides the section.
OPTIONS = {"accuracy": " --steps {all_steps} --seeds {seeds}"}
OPTIONS["training"] = f"{OPTIONS['accuracy']} --seconds {{seconds:g}}"
SECTIONS = {"agreement": agreement, "blame": blame, "accuracy": accuracy, "training": training}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sections", nargs="*", help=", ".join(SECTIONS))
    data_option(parser)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--steps", type=int, nargs="+", default=[240])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--memory", type=Path, help="folder for a cache of features")
    parser.add_argument("--records", type=Path, default=RESULTS / "precision.json")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    for name in arguments.sections or SECTIONS:
        options = OPTIONS.get(name, "").format(**vars(arguments), all_steps=" ".join(map(str, arguments.steps)))
        if options:
            require_data(parser, arguments)
        has = "with" if precision.candidates(CPU) else "without"
        title = f"{machine()}, {has} instructions for bfloat16; `python benchmarks/precision.py {name}{options}`"
        lines = [title, "", *SECTIONS[name](arguments)]
        print("\n".join(lines), flush=True)
        if arguments.output is not None:
            arguments.output.mkdir(parents=True, exist_ok=True)
            (arguments.output / f"precision-{name}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
