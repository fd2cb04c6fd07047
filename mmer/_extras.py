"""The optional dependencies, by the extra of ``mmer-attention`` that installs them.

The same lists as ``[project.optional-dependencies]`` in ``pyproject.toml``, which an installed
package no longer has; a test keeps the two equal.
"""

from __future__ import annotations

# Extra -> distribution -> the module it is imported as.
EXTRAS: dict[str, dict[str, str]] = {
    "train": {
        "jsonargparse": "jsonargparse",
        "lightning": "lightning",
        "matplotlib": "matplotlib",
        "pyarrow": "pyarrow",
        "rich": "rich",
        "tensorboard": "tensorboard",
        "torchmetrics": "torchmetrics",
    },
    "triton": {"triton": "triton"},
    "bench": {
        "bidirectional-cross-attention": "bidirectional_cross_attention",
        "local-attention": "local_attention",
        "matplotlib": "matplotlib",
        "onnx": "onnx",
        "onnxruntime": "onnxruntime",
        "openvino": "openvino",
        "pytest-benchmark": "pytest_benchmark",
        "rich": "rich",
    },
    "peers": {
        "bidirectional-cross-attention": "bidirectional_cross_attention",
        "kornia": "kornia",
        "local-attention": "local_attention",
        "transformers": "transformers",
    },
    "onnx": {"onnx": "onnx", "onnxruntime": "onnxruntime", "onnxscript": "onnxscript"},
}


def extra_with(module: str) -> str | None:
    """Return the extra that installs a module, or None if no extra does."""
    top_level = module.partition(".")[0]
    for extra, distributions in EXTRAS.items():
        if top_level in distributions.values():
            return extra
    return None


def install_command(extra: str) -> str:
    """Return the command that installs an extra."""
    return f"pip install 'mmer-attention[{extra}]'"
