"""The private APIs in `utils/_sklearn_compat` and `utils/_torch_compat`; a failure names the version that broke them."""

import sys
from numbers import Real

import numpy as np
import pandas as pd
import pytest
import sklearn
import timm
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.fixes import parse_version
from torch import nn

from sklearn_clpdd import ClosedFormProbe, CLPDistiller, DistilledSampler, FrozenEncoder
from sklearn_clpdd.utils import _sklearn_compat as sklearn_compat
from sklearn_clpdd.utils import _torch_compat as torch_compat

SKLEARN = f"scikit-learn {sklearn.__version__}"
TORCH = f"torch {torch.__version__}, timm {timm.__version__}"


def test_parameter_validation():
    class Own(BaseEstimator):
        _parameter_constraints = {
            "a": [sklearn_compat.Interval(Real, 0, 1, closed="left"), sklearn_compat.StrOptions({"auto"})],
            "b": [sklearn_compat.HasMethods("fit"), None],
        }

        def __init__(self, a="auto", b=None):
            self.a, self.b = a, b

    Own("auto")._validate_params()
    for bad in (Own(1.0), Own("other"), Own(b=3)):
        with pytest.raises(ValueError, match="must be"):
            bad._validate_params()


def test_sample_weight_and_first_call():
    X = np.zeros((3, 2))
    weight = sklearn_compat.check_sample_weight(None, X, dtype=np.float64, ensure_non_negative=True)
    assert (weight == 1).all(), f"{SKLEARN} changed _check_sample_weight"
    with pytest.raises(ValueError, match=r"[Nn]egative"):
        sklearn_compat.check_sample_weight([1, -1, 1], X, ensure_non_negative=True)
    probe = ClosedFormProbe()
    assert sklearn_compat.check_partial_fit_first_call(probe, [0, 1]), f"{SKLEARN} changed _check_partial_fit_first_call"
    assert probe.classes_.tolist() == [0, 1]


def test_safe_indexing():
    for X in (np.arange(6), pd.Series(range(6)), list(range(6))):
        assert list(sklearn_compat.safe_indexing(X, [4, 1])) == [4, 1], f"{SKLEARN} changed _safe_indexing"


def test_output_containers(monkeypatch):
    encoder = FrozenEncoder()
    sklearn_compat.check_output_container(encoder)
    with sklearn.config_context(transform_output="polars"):
        monkeypatch.setattr(sklearn_compat, "find_spec", lambda name: None)
        with pytest.raises(ImportError, match="needs polars"):
            sklearn_compat.check_output_container(encoder)


def test_html_of_a_notebook():
    class Own(sklearn_compat.HtmlAppendixMixin, BaseEstimator):
        def _html_appendix(self):
            return "<b>appended</b>"

    for html in (Own()._repr_html_(), Own()._repr_mimebundle_()["text/html"]):
        assert html.endswith("<b>appended</b>"), f"{SKLEARN} changed HTML repr"


def test_metadata_request_of_another_method():
    method = sklearn_compat.RequestMethod("fit_resample", ["groups"])
    assert (method.name, method.keys) == ("fit_resample", ["groups"]), f"{SKLEARN} changed RequestMethod"
    assert callable(DistilledSampler().set_fit_resample_request)


@pytest.mark.skipif(parse_version(sklearn.__version__) < parse_version("1.9"), reason="callbacks came with scikit-learn 1.9")
def test_hooks_of_callbacks():
    for hook in ("set_callbacks", "_init_callback_context"):
        assert hasattr(CLPDistiller, hook), f"{SKLEARN} has no {hook}"


def test_missing_matplotlib_is_named(monkeypatch):
    sklearn_compat.check_matplotlib_support("Display")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="Display requires matplotlib"):
        sklearn_compat.check_matplotlib_support("Display")


def test_fusing_batch_norms():
    conv, norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4).eval()
    norm.running_mean.uniform_(-1, 1)
    fused = torch_compat.fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(torch.conv2d(x, *fused), norm(conv(x)), msg=lambda text: f"{TORCH}: {text}")


def test_gradient_of_a_clamp():
    x = torch.linspace(-3, 9, 50).requires_grad_()
    y = x.clamp(0.0, 6.0)
    (wanted,) = torch.autograd.grad(y.sum(), x)
    found = torch_compat.clamp_backward(torch.ones(50), y.detach(), 0.0, 6.0)
    torch.testing.assert_close(found, wanted, msg=lambda text: f"{TORCH}: {text}")


def test_preprocessing_is_timms():
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    assert torch_compat.checkpoint_filter(model) is not None, f"{TORCH} has no checkpoint_filter_fn"
    assert torch_compat.pretrained_config(model)["input_size"] == (3, 224, 224)
    assert torch_compat.pretrained_config(nn.Identity()) == {}
    assert torch_compat.has_fixed_input_size("vit_tiny_patch16_224")
    assert not torch_compat.has_fixed_input_size("resnet18")
    same = timm.create_model("tf_efficientnet_lite0").conv_stem
    assert torch_compat.is_conv2d_same(same), f"{TORCH} changed Conv2dSame"


def test_the_forward_pass_of_a_convolution():
    seen = []

    class Own(nn.Conv2d):
        def _conv_forward(self, input, weight, bias):
            seen.append(input.shape)
            return super()._conv_forward(input, weight, bias)

    Own(3, 4, 3)(torch.rand(1, 3, 8, 8))
    assert seen == [(1, 3, 8, 8)], f"{TORCH} changed nn.Conv2d._conv_forward"
