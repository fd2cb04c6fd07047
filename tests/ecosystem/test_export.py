"""Programs of ``torch.export``, AOTInductor and ONNX, which run elsewhere and give the same."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from torch import nn

from mmer.export import export_onnx
from tests.ecosystem.cases import NAMES, inputs, make, tensors


@pytest.mark.parametrize("name", NAMES)
def test_exported_programs_can_be_saved(name: str) -> None:
    module = make(name).eval()
    arguments, options = inputs(name)
    program = torch.export.export(module, arguments, options)
    saved = io.BytesIO()
    torch.export.save(program, saved)
    saved.seek(0)
    loaded = torch.export.load(saved).module()
    wanted, got = tensors(module(*arguments, **options)), tensors(loaded(*arguments, **options))
    for x, y in zip(got, wanted, strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("name", ["shared", pytest.param("bidirectional", marks=pytest.mark.slow)])
def test_onnx_of_a_layer_with_sizes_that_vary(name: str, tmp_path: Path) -> None:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    module, path = make(name).eval(), tmp_path / "layer.onnx"
    arguments, options = inputs(name)
    batch, time_a, time_b = (torch.export.Dim(x) for x in ("batch", "time_a", "time_b"))
    sizes_b = {0: batch, 1: time_b}
    export_onnx(
        module,
        path,
        arguments,
        options,
        dynamic_shapes={"x_a": {0: batch, 1: time_a}, "x_b": sizes_b, "mask_b": sizes_b},
    )
    domains = {node.domain for node in onnx.load(path).graph.node}
    assert domains <= {"", "ai.onnx"}
    assert list(tmp_path.iterdir()) == [path]

    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count, time_a, time_b in ((4, 9, 11), (2, 31, 5), (3, 2, 40)):
        x, y = torch.randn(count, time_a, 16), torch.randn(count, time_b, 16)
        mask = torch.rand(count, time_b) < 0.6
        mask[0] = False
        got = session.run(None, {"x_a": x.numpy(), "x_b": y.numpy(), "mask_b": mask.numpy()})
        for out, wanted in zip(got, module(x, y, mask_b=mask), strict=True):
            torch.testing.assert_close(torch.from_numpy(out), wanted)
            assert (out[0] == 0).all()


@pytest.mark.parametrize("name", ["chunked", pytest.param("kornia", marks=pytest.mark.slow)])
def test_onnx_of_one_size(name: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    module, path = make(name).eval(), tmp_path / "layer.onnx"
    arguments, options = inputs(name)
    export_onnx(module, path, arguments, options)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    given = [x.numpy() for x in (*arguments, *options.values())]
    got = session.run(None, dict(zip(names, given, strict=True)))
    for out, wanted in zip(got, tensors(module(*arguments, **options)), strict=True):
        torch.testing.assert_close(torch.from_numpy(out), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bidirectional", "shared", "chunked", "kornia"])
def test_aot_inductor(name: str, tmp_path: Path) -> None:
    """A compiled program that calls the operators, as C++ would: the same bits."""
    module = make(name).eval()
    arguments, options = inputs(name)
    with torch.no_grad():
        program = torch.export.export(module, arguments, options)
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "layer.pt2")
        )
        got = torch._inductor.aoti_load_package(path)(*arguments, **options)
        for x, y in zip(tensors(got), tensors(module(*arguments, **options)), strict=True):
            torch.testing.assert_close(x, y)
    assert any("mmer" in str(node.target) for node in program.graph.nodes)


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="module"):
        export_onnx([1], tmp_path / "layer.onnx", ())
    with pytest.raises(ValueError, match="evaluation mode"):
        export_onnx(nn.Linear(2, 2), tmp_path / "layer.onnx", (torch.ones(1, 2),))
    assert not list(tmp_path.iterdir())
