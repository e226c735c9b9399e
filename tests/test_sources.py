"""Networks of timm, transformers, open_clip and torchvision: the features that each library itself computes, pool by pool.

All networks are small and untrained, with weights large enough that their features depend on the images. They are saved and
loaded from local folders. What is expected comes from the library's own model and preprocessing.
"""

import inspect
import json
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from torch import nn

from sklearn_clpdd import ClosedFormProbe, CLPDistiller, FrozenEncoder
from sklearn_clpdd.encoder.images._forms import as_images

transformers = pytest.importorskip("transformers")
open_clip = pytest.importorskip("open_clip")
torchvision = pytest.importorskip("torchvision")
PreprocessCfg, image_transform_v2 = open_clip.transform.PreprocessCfg, open_clip.transform.image_transform_v2

SIZE = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
VIT = SIZE | {"image_size": 32, "patch_size": 8}


def photos():
    """Six pictures of 48 × 40 px, smooth and different."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
    return [Image.fromarray(pixels).resize((40, 48), Image.Resampling.BICUBIC) for pixels in small]


def enlivened(module):
    """The module with random weights."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for name, parameter in module.named_parameters():
            is_scale = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_((1.0 if is_scale else 0.0) + 0.2 * torch.randn_like(parameter))
    return module.eval()


def assert_same_features(found, expected):
    """Cosines of at least 0.9999 between the features, also after what the images have in common is subtracted."""
    expected = np.asarray(expected.detach(), dtype=np.float64)
    for base in (np.zeros(1), expected.mean(axis=0)):
        one, other = found - base, expected - base
        cosines = (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
        assert cosines.min() > 0.9999, cosines


def check(given, pixels, expected, pool="auto", layers=1, **parameters):
    """Our pixels are the library's, which are rounded to 8 bits, and our features of its pixels are its own."""
    extractor = FrozenEncoder(given, pool=pool, layers=layers, l2_normalize=False, device="cpu", **parameters).load()
    own = extractor.preprocessing
    mean, std = (torch.tensor(values)[:, None, None] for values in (own.mean, own.std))
    plain = (pixels * std + mean).clamp(0, 1)
    difference = (as_images(photos()).read(range(6), own, None) - plain).abs()
    assert difference.max() < 2.5 / 255
    assert difference.mean() < 0.6 / 255
    with torch.no_grad():
        assert_same_features(extractor(plain).numpy(), expected)


def pooled(blocks, n_prefix, pool, norm=None):
    """Features of the tokens of each of the last blocks, as the documentation says; some networks norm what is pooled."""
    norm = norm or nn.Identity()
    tokens, averages = [norm(block[:, 0]) for block in blocks], [norm(block[:, n_prefix:].mean(1)) for block in blocks]
    return torch.cat({"token": tokens, "avg": averages, "token+avg": [*tokens, averages[-1]]}[pool], dim=1)


def norm_of_pooled(tower):
    """BEiT's, which its pooler has."""
    return getattr(getattr(tower, "pooler", None), "layernorm", None)


PLAIN = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
POOLS = [("token", 1), ("avg", 1), ("token+avg", 1), ("token", 2), ("avg", 2), ("token+avg", 3)]


def encoded(model, pool="auto", layers=1, **parameters):
    encoder = FrozenEncoder(model, pool=pool, layers=layers, l2_normalize=False, device="cpu", **parameters)
    return encoder.transform(photos())


# transformers

CONFIGS = {
    "vit": transformers.ViTConfig(**VIT),
    "deit": transformers.DeiTConfig(**VIT),
    "dinov2": transformers.Dinov2Config(**SIZE, image_size=64, patch_size=8),
    "dinov2_with_registers": transformers.Dinov2WithRegistersConfig(**SIZE, image_size=64, patch_size=8, num_register_tokens=2),
    "dinov3": transformers.DINOv3ViTConfig(**SIZE, image_size=32, patch_size=8, num_register_tokens=2),
    "mae": transformers.ViTMAEConfig(**VIT),
    "msn": transformers.ViTMSNConfig(**VIT),
    "beit": transformers.BeitConfig(**VIT),
    "ijepa": transformers.IJepaConfig(**VIT),
    "clip": transformers.CLIPConfig(
        text_config=SIZE | {"vocab_size": 40, "projection_dim": 16}, vision_config=VIT | {"projection_dim": 16}, projection_dim=16
    ),
    "siglip": transformers.SiglipConfig(text_config=SIZE | {"vocab_size": 40}, vision_config=VIT),
    "convnext": transformers.ConvNextConfig(hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1]),
    "resnet": transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1], layer_type="basic"),
    "swin": transformers.SwinConfig(image_size=32, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4),
}
# Name of the final norm, tokens before the patches, and what "auto" is; None: the pooled output.
TRANSFORMERS = {
    "vit": ("layernorm", 1, "token"),
    "deit": ("layernorm", 2, "token"),
    "dinov2": ("layernorm", 1, "token"),
    "dinov2_with_registers": ("layernorm", 3, "token"),
    "dinov3": ("norm", 3, "token"),
    "mae": ("layernorm", 1, "token"),
    "msn": ("layernorm", 1, "token"),
    "beit": ("layernorm", 1, "avg"),
    "ijepa": ("layernorm", 0, "avg"),
    "clip": ("post_layernorm", 1, "token"),
    "siglip": ("post_layernorm", 0, None),
    "convnext": (None, None, None),
    "resnet": (None, None, None),
    "swin": (None, None, None),
}
PROCESSORS = {
    "clip": lambda: transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    "siglip": lambda: transformers.SiglipImageProcessor(size={"height": 32, "width": 32}),
    "convnext": lambda: transformers.ConvNextImageProcessor(size={"shortest_edge": 56}, crop_pct=0.875),
    "dinov2": lambda: transformers.BitImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}),
}


@pytest.fixture(scope="module", params=CONFIGS)
def saved(request, tmp_path_factory):
    """Name, folder, model and image processor of a family."""
    folder = tmp_path_factory.mktemp(request.param)
    model = enlivened(transformers.AutoModel.from_config(CONFIGS[request.param]))
    model.save_pretrained(folder)
    processor = PROCESSORS.get(request.param, lambda: transformers.ViTImageProcessor(size={"height": 32, "width": 32}))()
    processor.save_pretrained(folder)
    return request.param, folder, model, processor


def outputs(model, processor, family):
    """The image tower, its own preprocessing of the photos, and its output."""
    pixels = processor(photos(), return_tensors="pt")["pixel_values"]
    tower = getattr(model, "vision_model", model)
    options = {}
    if family == "mae":
        tower.config.mask_ratio = 0.0
        options["noise"] = torch.arange(16.0).expand(6, -1)
    with torch.no_grad():
        return tower, pixels, tower(pixel_values=pixels, output_hidden_states=True, **options)


def test_transformers_auto(saved):
    name, folder, model, processor = saved
    norm, n_prefix, auto = TRANSFORMERS[name]
    tower, pixels, output = outputs(model, processor, name)
    if auto is None:
        expected = output.pooler_output.flatten(1)
    else:
        expected = pooled([getattr(tower, norm)(output.hidden_states[-1])], n_prefix, auto, norm_of_pooled(tower))
    check(f"transformers:{folder}", pixels, expected)
    check(transformers.AutoModel.from_pretrained(folder), pixels, expected)


@pytest.mark.parametrize(("pool", "layers"), POOLS)
def test_transformers_pools(saved, pool, layers):
    name, folder, model, processor = saved
    norm, n_prefix, _ = TRANSFORMERS[name]
    if norm is None or (n_prefix == 0 and "token" in pool):
        with pytest.raises(ValueError, match=r"needs (a class token|the tokens)"):
            encoded(f"transformers:{folder}", pool, layers)
        return
    tower, pixels, output = outputs(model, processor, name)
    expected = pooled(
        [getattr(tower, norm)(state) for state in output.hidden_states[-layers:]], n_prefix, pool, norm_of_pooled(tower)
    )
    check(f"transformers:{folder}", pixels, expected, pool, layers)


@pytest.mark.parametrize("size", [40, 48])
def test_another_image_size_resamples_positions_once(saved, size):
    """As transformers does in each pass."""
    name, folder, model, _ = saved
    norm, n_prefix, auto = TRANSFORMERS[name]
    tower = getattr(model, "vision_model", model)
    pixels, options = torch.rand(4, 3, size, size), {}
    if "interpolate_pos_encoding" in inspect.signature(tower.forward).parameters:
        options["interpolate_pos_encoding"] = True
    if name == "mae":
        tower.config.mask_ratio = 0.0
        options["noise"] = torch.arange((size // 8) ** 2 * 1.0).expand(4, -1)
    with torch.no_grad():
        output = tower(pixel_values=pixels, output_hidden_states=True, **options)
    expected = output.pooler_output.flatten(1) if auto is None else None
    if auto is not None:
        expected = pooled([getattr(tower, norm)(output.hidden_states[-1])], n_prefix, auto, norm_of_pooled(tower))
    own = {"image_size": size, "crop_pct": 1.0, "mean": (0,) * 3, "std": (1,) * 3, "l2_normalize": False, "device": "cpu"}
    extractor = FrozenEncoder(f"transformers:{folder}", **own).load()
    with torch.no_grad():
        assert_same_features(extractor(pixels).numpy(), expected)
    positions = getattr(getattr(extractor.backbone.module.network, "embeddings", None), "position_embeddings", None)
    if isinstance(positions, nn.Parameter):
        before = model.embeddings.position_embeddings.shape[1] - (model.config.image_size // 8) ** 2
        assert positions.shape[1] == before + (size // 8) ** 2


def test_features_of_transformers_are_cached_and_resumed(tmp_path, colors):
    """Also with several blocks, and from another folder."""
    model = enlivened(transformers.Dinov2Model(CONFIGS["dinov2"]))
    identities = []
    for folder in ("one", "other"):
        model.save_pretrained(tmp_path / folder)
        own = {"image_size": 32, "mean": (0.5,) * 3, "std": (0.2,) * 3, "layers": 2, "memory": tmp_path / "cache"}
        encoder = FrozenEncoder(f"transformers:{tmp_path / folder}", **own)
        first = encoder.transform(photos())
        np.testing.assert_array_equal(encoder.transform(photos()), first)
        identities.append(encoder.load().identity())
    assert identities[0] == identities[1]


@pytest.mark.slow
def test_the_identity_is_the_same_in_another_process(tmp_path):
    enlivened(transformers.Dinov2Model(CONFIGS["dinov2"])).save_pretrained(tmp_path)
    own = {"image_size": 32, "mean": (0.5,) * 3, "std": (0.2,) * 3, "layers": 2}
    script = (
        "import sys; from sklearn_clpdd import FrozenEncoder\n"
        "own = {'image_size': 32, 'mean': (0.5,) * 3, 'std': (0.2,) * 3, 'layers': 2}\n"
        "print(FrozenEncoder('transformers:' + sys.argv[1], **own).load().identity())"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, capture_output=True, text=True)
    assert done.stdout.split()[-1] == FrozenEncoder(f"transformers:{tmp_path}", **own).load().identity()


def test_a_classifier_of_transformers_loses_its_head(tmp_path):
    model = enlivened(transformers.ViTForImageClassification(CONFIGS["vit"]))
    model.save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    for given in (f"transformers:{tmp_path}", transformers.ViTForImageClassification.from_pretrained(tmp_path)):
        assert encoded(given).shape == (6, 24)


@pytest.mark.parametrize("name", ["vit", "clip", "siglip", "convnext"])
def test_missing_weights_of_transformers_are_refused(name, tmp_path):
    from safetensors.torch import load_file, save_file

    transformers.AutoModel.from_config(CONFIGS[name]).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    key = next(key for key in state if "text" not in key and "pooler" not in key and state[key].ndim > 1)
    del state[key]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lack 1 parameter"):
        FrozenEncoder(f"transformers:{tmp_path}").load()


@pytest.mark.parametrize("kind", ["missing", "broken", "rescaled", "not resized"])
def test_an_image_processor_that_is_not_followed_is_told(kind, tmp_path):
    transformers.ViTModel(CONFIGS["vit"]).save_pretrained(tmp_path)
    options = {"rescaled": {"rescale_factor": 1 / 127.5}, "not resized": {"do_resize": False}}.get(kind, {})
    if kind != "missing":
        transformers.ViTImageProcessor(size={"height": 32, "width": 32}, **options).save_pretrained(tmp_path)
    if kind == "broken":
        (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"how ViTModel wants its images is not known: its .* Pass image_size=, mean= and std="):
        FrozenEncoder(f"transformers:{tmp_path}").load()
    assert FrozenEncoder(f"transformers:{tmp_path}", image_size=32, **PLAIN).load().preprocessing.std == (1.0,) * 3


def test_a_folder_that_changes_is_noticed(tmp_path):
    features = []
    for factor in (1, 2):
        model = enlivened(transformers.Dinov2Model(CONFIGS["dinov2"]))
        with torch.no_grad():
            model.embeddings.patch_embeddings.projection.weight.mul_(factor)
        model.save_pretrained(tmp_path)
        features.append(FrozenEncoder(f"transformers:{tmp_path}", image_size=32, **PLAIN).transform(photos()))
    assert not np.allclose(*features, atol=1e-3)


def test_weights_of_a_users_module_are_loaded_as_a_whole(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.proj = nn.Sequential(nn.AvgPool2d(8), nn.Flatten()), nn.Linear(12, 5)

        def forward(self, x):
            return self.proj(self.network(x))

    one, other = Net(), Net()
    torch.save(other.state_dict(), tmp_path / "weights.pth")
    given = {"image_size": 16, "l2_normalize": False}
    found = FrozenEncoder(one, weights=tmp_path / "weights.pth", **given).transform(photos())
    np.testing.assert_allclose(found, FrozenEncoder(other, **given).transform(photos()), atol=1e-6)


def test_a_head_that_is_not_torchvisions_stays():
    module = torchvision.models.resnet18()
    module.fc = nn.Sequential(nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 7))
    assert FrozenEncoder(module, image_size=64).load().n_features == 7


def test_pools_that_timm_was_built_with_stay():
    assert (
        FrozenEncoder("resnet18", weights=None, image_size=64, model_kwargs={"global_pool": "catavgmax"}).load().n_features
        == 1024
    )


def test_options_that_are_set_here_are_refused():
    for name in ("resnet18", "torchvision:resnet18"):
        with pytest.raises(ValueError, match=r"model_kwargs have \['num_classes'\], which FrozenEncoder sets itself"):
            FrozenEncoder(name, weights=None, model_kwargs={"num_classes": 7}).load()


def test_blocks_of_torchvision_can_be_cached(tmp_path):
    encoder = FrozenEncoder("torchvision:vit_b_32", weights=None, image_size=64, layers=2, pool="avg", memory=tmp_path)
    np.testing.assert_array_equal(encoder.transform(photos()), encoder.transform(photos()))


def test_an_object_without_a_processor_needs_its_settings():
    model = transformers.ViTModel(CONFIGS["vit"])
    for given in ({}, {"image_size": 32}, {"image_size": 32, "mean": (0.5,) * 3}):
        with pytest.raises(ValueError, match=r"has no image processor. Pass image_size=, mean= and std="):
            FrozenEncoder(model, **given).load()
    assert FrozenEncoder(model, image_size=32, **PLAIN).transform(photos()).shape == (6, 24)


def test_untrained_weights_and_weights_of_a_file(tmp_path):
    model = enlivened(transformers.ViTModel(CONFIGS["vit"], add_pooling_layer=False))
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    one, same = (encoded(f"transformers:{tmp_path}", weights=None, image_size=32, **PLAIN) for _ in range(2))
    np.testing.assert_array_equal(one, same)
    other = encoded(f"transformers:{tmp_path}", weights=tmp_path / "weights.pth", image_size=32, **PLAIN)
    assert not np.allclose(one, other, atol=1e-2)


# timm


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("timm")
    model = enlivened(timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3, num_classes=5))
    model.pretrained_cfg["input_size"] = (3, 32, 32)
    timm.models.save_for_hf(model, folder, model_args={"img_size": 32, "depth": 3})
    return folder, model


def timm_pixels(model):
    config = timm.data.resolve_model_data_config(model)
    return torch.stack([timm.data.create_transform(**config)(photo) for photo in photos()])


def test_local_folders_of_timm(timm_folder):
    folder, model = timm_folder
    pixels = timm_pixels(model)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(pixels), pre_logits=True)
    check(f"local-dir:{folder}", pixels, expected)
    check(model, pixels, expected)  # its classifier is not used


@pytest.mark.parametrize("size", [32, 48])
def test_folders_of_timm_at_any_size(timm_folder, size):
    """Position embeddings are resampled, as timm does it; the network is built once."""
    folder, _ = timm_folder
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, img_size=size, num_classes=0).eval()
    pixels = torch.rand(4, 3, size, size)
    own = {"image_size": size, "mean": (0.0,) * 3, "std": (1.0,) * 3, "l2_normalize": False, "device": "cpu"}
    with torch.no_grad():
        assert_same_features(FrozenEncoder(f"local-dir:{folder}", **own).load()(pixels).numpy(), model(pixels))


@pytest.mark.parametrize(("pool", "layers"), POOLS)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {}),
        ("vit_small_patch16_dinov3", {}),
        ("eva02_tiny_patch14_224", {}),
        ("vit_base_patch16_siglip_224", {"embed_dim": 24, "num_heads": 2}),
        ("beit_base_patch16_224", {"embed_dim": 24, "num_heads": 2}),
    ],
)
def test_timm_pools(name, options, pool, layers):
    model = enlivened(timm.create_model(name, num_classes=0, img_size=32 if "14" not in name else 28, depth=3, **options))
    model.pretrained_cfg["input_size"] = (3, *([28] * 2 if "14" in name else [32] * 2))
    n_prefix = model.num_prefix_tokens
    if "siglip" in name and "token" in pool:
        with pytest.raises(ValueError, match="needs a class token"):
            encoded(model, pool, layers)
        return
    blocks, pixels = [], timm_pixels(model)
    for block in model.blocks:
        block.register_forward_hook(lambda *seen: blocks.append(seen[-1]))
    with torch.no_grad():
        model(pixels)
        norm = model.norm
        after = getattr(model, "fc_norm", None) or nn.Identity()
        parts = pooled([norm(block) for block in blocks[-layers:]], n_prefix, pool).unflatten(1, (-1, model.num_features))
        expected = after(parts).flatten(1)
    for block in model.blocks:
        block._forward_hooks.clear()
    check(model, pixels, expected, pool, layers)


def test_dinov3_is_the_class_token_by_default():
    model = enlivened(timm.create_model("vit_small_patch16_dinov3", img_size=32, depth=2))
    model.pretrained_cfg["input_size"] = (3, 32, 32)
    pixels = timm_pixels(model)
    with torch.no_grad():
        tokens = model.forward_features(pixels)
        assert not np.allclose(model(pixels), tokens[:, 0], atol=0.1)  # timm itself averages
    check(model, pixels, tokens[:, 0])
    named = FrozenEncoder("vit_small_patch16_dinov3", weights=None, image_size=32, model_kwargs={"depth": 2}).load()
    assert named.backbone.module.pool == "token"
    averaged = FrozenEncoder(
        "vit_small_patch16_dinov3", weights=None, image_size=32, model_kwargs={"global_pool": "avg", "depth": 2}
    )
    assert averaged.load().backbone.module.global_pool == "avg"


def test_options_of_the_network():
    options = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU, "mlp_ratio": 2.0, "depth": 1}
    encoder = FrozenEncoder("vit_tiny_patch16_224", weights=None, image_size=32, model_kwargs=options)
    module = encoder.load().backbone.module
    assert type(module.blocks[0].mlp).__name__ == "GluMlp"
    assert clone(encoder).load().backbone.module is module
    assert encoder.set_params(model_kwargs=options | {"depth": 2}).load().backbone.module is not module
    with pytest.raises(ValueError, match=r"timm cannot build 'vit_tiny_patch16_224' with model_kwargs=.*nonsense"):
        FrozenEncoder("vit_tiny_patch16_224", weights=None, model_kwargs={"nonsense": 1}).load()
    with pytest.raises(ValueError, match="is built"):
        FrozenEncoder(timm.create_model("vit_tiny_patch16_224"), model_kwargs=options).load()


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "tf_efficientnet_lite0"])
def test_networks_without_tokens(name):
    encoder = FrozenEncoder(name, weights=None, image_size=64, device="cpu")
    own = encoder.transform(photos())
    np.testing.assert_array_equal(encoder.set_params(pool="avg").transform(photos()), own)
    for parameters in ({"pool": "token"}, {"pool": "token+avg"}, {"layers": 2}):
        with pytest.raises(ValueError, match="none that are known here; pass pool='auto' or 'avg'"):
            clone(encoder).set_params(**parameters).load()


def test_a_module_of_a_user_has_no_tokens(module):
    with pytest.raises(ValueError, match="needs the tokens of a vision transformer"):
        FrozenEncoder(module, image_size=16, pool="token").load()


# open_clip


@pytest.fixture(scope="module", params=["vit", "timm"])
def tower(request, tmp_path_factory):
    """Name with weights, and the model, of a small CLIP."""
    folder = tmp_path_factory.mktemp("open_clip")
    vision = {"image_size": 32, "layers": 3, "width": 64, "head_width": 32, "patch_size": 8}
    if request.param == "timm":
        vision = {
            "timm_model_name": "vit_tiny_patch16_224",
            "timm_model_pretrained": False,
            "image_size": 224,
            "timm_pool": "token",
        }
        vision |= {"timm_proj": "linear"}
    text = {"context_length": 8, "vocab_size": 40, "width": 32, "heads": 2, "layers": 1}
    name = f"tiny-{request.param}"
    (folder / f"{name}.json").write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(folder)
    model = enlivened(open_clip.create_model(name))
    torch.save(model.state_dict(), folder / "weights.pt")
    return f"open_clip:{name}/{folder / 'weights.pt'}", model


def open_clip_tokens(model, layers):
    visual = model.visual
    transform = image_transform_v2(PreprocessCfg(**visual.preprocess_cfg), is_train=False)
    pixels = torch.stack([transform(photo) for photo in photos()])
    blocks, trunk = [], getattr(visual, "trunk", None)
    layer_list = visual.transformer.resblocks if trunk is None else trunk.blocks
    handles = [block.register_forward_hook(lambda *seen: blocks.append(seen[-1])) for block in layer_list]
    with torch.no_grad():
        visual(pixels)
        norm = visual.ln_post if trunk is None else trunk.norm
        found = [norm(block) for block in blocks[-layers:]]
    for handle in handles:
        handle.remove()
    return pixels, found


@pytest.mark.parametrize(("pool", "layers"), [("auto", 1), *POOLS])
def test_open_clip(tower, pool, layers):
    name, model = tower
    pixels, blocks = open_clip_tokens(model, layers)
    expected = pooled(blocks, 1, "token" if pool == "auto" else pool)
    for given in (name, model, model.visual):
        check(given, pixels, expected, pool, layers)


# torchvision


LARGE = [pytest.param(name, marks=pytest.mark.slow) for name in ("convnext_tiny", "densenet121", "vgg11", "swin_t", "maxvit_t")]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1", *LARGE])
def test_torchvision(name, tmp_path):
    weights = torchvision.models.get_model_weights(name).DEFAULT
    module = torchvision.models.get_model(name)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5)
    module.eval()
    torch.save(module.state_dict(), tmp_path / "weights.pth")
    before_head = []
    head = [layer for layer in module.modules() if isinstance(layer, nn.Linear)] or [module.classifier[1]]
    handle = head[-1].register_forward_pre_hook(lambda layer, given: before_head.append(given[0]))
    pixels = torch.stack([weights.transforms()(photo) for photo in photos()])
    with torch.no_grad():
        module(pixels)
    handle.remove()
    expected = before_head[0].mean((2, 3)) if before_head[0].ndim == 4 else before_head[0]
    check(f"torchvision:{name}", pixels, expected, weights=tmp_path / "weights.pth")
    check(module, pixels, expected, weights=weights)
    assert module(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)  # the user's module keeps its head


@pytest.mark.parametrize(("pool", "layers"), [("auto", 1), *POOLS])
def test_torchvision_transformer(pool, layers):
    module = torchvision.models.VisionTransformer(32, 8, num_layers=3, num_heads=2, hidden_dim=24, mlp_dim=32)
    enlivened(module)
    blocks = []
    handles = [block.register_forward_hook(lambda *seen: blocks.append(seen[-1])) for block in module.encoder.layers]
    transforms = torchvision.transforms._presets.ImageClassification(crop_size=32, resize_size=36)
    pixels = torch.stack([transforms(photo) for photo in photos()])
    with torch.no_grad():
        module(pixels)
        expected = pooled([module.encoder.ln(block) for block in blocks[-layers:]], 1, "token" if pool == "auto" else pool)
    for handle in handles:
        handle.remove()
    check(module, pixels, expected, pool, layers, crop_pct=32 / 36)


# Errors come before any long work, and say what exists.


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision:resnet19", r"unknown encoder 'torchvision:resnet19'; did you mean.*resnet18"),
        ("torchvision:resnet18/IMAGENET", r"unknown weights; torchvision has \['IMAGENET1K_V1'\]"),
        ("open_clip:ViT-B-33", r"unknown encoder 'open_clip:ViT-B-33'; did you mean.*ViT-B-32"),
        ("open_clip:ViT-B-32", r"pass open_clip:ViT-B-32/PRETRAINED with a file or one of \[.*laion2b"),
    ],
)
def test_unknown_names(name, message, no_encoding):
    with pytest.raises(ValueError, match=message):
        FrozenEncoder(name).transform(photos())


@pytest.mark.parametrize("name", ["transformers:nobody/nothing", "hf-hub:nobody/nothing", "hf_hub:nobody/nothing"])
def test_what_cannot_be_downloaded(name, no_encoding):
    with pytest.raises(OSError, match=f"pretrained weights of '{name}' could not be downloaded"):
        FrozenEncoder(name).transform(photos())


def test_gated_files_say_how_to_get_them(monkeypatch):
    class GatedRepoError(OSError):
        pass

    def refuse(*arguments, **options):
        raise GatedRepoError("401 Client Error")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(OSError, match=r"Accept its conditions .* log in with `hf auth login`"):
        FrozenEncoder("hf-hub:MahmoodLab/UNI").load()


def test_weights_of_torchvision_for_another_library():
    weights = torchvision.models.ResNet18_Weights.DEFAULT
    for model in ("resnet18", timm.create_model("resnet18")):
        with pytest.raises(ValueError, match="are torchvision's; pass model='torchvision:NAME'"):
            FrozenEncoder(model, weights=weights).load()
    with pytest.raises(ValueError, match=r"are not those of 'torchvision:resnet34'; torchvision has \['IMAGENET1K_V1'\]"):
        FrozenEncoder("torchvision:resnet34", weights=weights).load()


def test_missing_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"needs a folder with config.json"):
        FrozenEncoder(f"local-dir:{tmp_path}").load()
    with pytest.raises(ValueError, match="cannot be used: ValueError: Unrecognized model"):
        FrozenEncoder(f"transformers:{tmp_path}").load()


@pytest.mark.parametrize(
    ("package", "name", "extra"),
    [
        ("transformers", "transformers:x", "transformers"),
        ("open_clip", "open_clip:x", "open-clip"),
        ("torchvision.models", "torchvision:x", "torchvision"),
    ],
)
def test_missing_extras_are_named(package, name, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'{name}.* needs {package}; install it with pip install "sklearn-clpdd\[{extra}\]"'):
        FrozenEncoder(name).load()


# At home in scikit-learn.


def test_a_search_chooses_the_encoder(colors):
    X, y = colors
    search = GridSearchCV(
        make_pipeline(FrozenEncoder(weights=None, image_size=32), ClosedFormProbe()),
        {"frozenencoder__model": ["vit_tiny_patch16_224", "resnet18"], "frozenencoder__pool": ["auto", "avg"]},
        cv=2,
    ).fit(X, y)
    assert search.best_score_ > 0.5


@pytest.mark.parametrize("pool", ["token", "token+avg"])
def test_distillation_through_tokens(pool, colors):
    encoder = FrozenEncoder(transformers.ViTModel(CONFIGS["vit"]), image_size=32, pool=pool, **PLAIN)
    distiller = CLPDistiller(encoder, max_iter=3, random_state=0).fit(*colors)
    assert distiller.transform().shape == (3, 32, 32, 3)
    assert np.isfinite(distiller.history_[-1]["loss"])
