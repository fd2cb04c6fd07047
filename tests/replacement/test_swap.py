"""What ``replace_attention`` does to a model, and does not do to it."""

from __future__ import annotations

import copy
import pickle
import runpy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mmer
from mmer import replace_attention
from mmer.kernels import backends
from mmer.replacement import FusedModule, register_replacement, rules
from tests.ecosystem.cases import NAMES, inputs, make, tensors
from tests.error_rule import random_tensor
from tests.replacement.parity import assert_parity, randomise

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "drop_in_own_module.py"


class Plain(nn.Module):
    """A module of a user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, flag: bool = False) -> Tensor:
        return self.linear(x)


class FusedPlain(FusedModule, Plain):
    @staticmethod
    def refusal(module: nn.Module, name: str) -> str | None:
        return "its name says so" if name.endswith("refused") else None

    def forward(self, x: Tensor, flag: bool = False) -> Tensor:
        if flag:
            return self.original_forward("flag is given", x, flag)
        return self.linear(x) + 1


class FusedWithOtherArguments(FusedModule, Plain):
    def forward(self, y: Tensor) -> Tensor:
        return y


class Derived(Plain):
    pass


@pytest.fixture(autouse=True)
def _own_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))
    register_replacement(FusedPlain)


def test_weights_hooks_and_names_stay_and_undo_restores_everything() -> None:
    model = nn.ModuleDict({"one": Plain(), "two": Plain()})
    calls = []
    model["one"].register_forward_hook(lambda *_: calls.append(1))
    parameters, state = dict(model.named_parameters()), model.state_dict()
    x = torch.randn(3, 4)
    before = model["one"](x)
    attributes = [dict(vars(module)) for module in model.values()]

    replacement = replace_attention(model, backend="reference")
    assert replacement.replaced == dict.fromkeys(("one", "two"), "Plain -> FusedPlain")
    assert torch.equal(model["one"](x), before + 1)
    assert model["one"].attention_backend == "reference"
    assert isinstance(model["one"], Plain)
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert list(model.state_dict()) == list(state)
    assert len(calls) == 2

    replacement.undo()
    replacement.undo()
    assert [type(module) for module in model.values()] == [Plain, Plain]
    assert [dict(vars(module)) for module in model.values()] == attributes
    assert torch.equal(model["one"](x), before)


def test_the_context_manager_undoes_it_after_an_error() -> None:
    model = Plain()
    with pytest.raises(RuntimeError), replace_attention(model):
        model(torch.randn(2, 3))
    assert type(model) is Plain


def test_twice_is_once() -> None:
    model = nn.Sequential(Plain())
    first = replace_attention(model)
    with pytest.warns(UserWarning, match="nothing was replaced"):
        second = replace_attention(model)
    assert not second.replaced
    second.undo()
    assert type(model[0]) is FusedPlain
    first.undo()
    assert type(model[0]) is Plain


def test_a_module_that_stands_in_two_places_is_replaced_once() -> None:
    shared = Plain()
    model = nn.ModuleDict({"here": shared, "there": shared})
    with replace_attention(model) as replacement:
        assert list(replacement.replaced) == ["here"]
    assert type(shared) is Plain


def test_what_is_left_alone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.ModuleDict({"refused": Plain(), "derived": Derived(), "patched": Plain()})
    model["patched"].forward = lambda x: x
    with pytest.warns(UserWarning, match="nothing was replaced"):
        replacement = replace_attention(model)
    assert list(replacement.left_alone) == ["refused", "derived", "patched"]
    text = str(replacement)
    for part in ("replaced: 0", "left alone: 3", "its name says so", "derived from Plain"):
        assert part in text

    monkeypatch.setattr(rules, "_RULES", {})
    register_replacement(FusedWithOtherArguments)
    with pytest.warns(UserWarning, match="forward takes"):
        assert not replace_attention(Plain()).replaced


def test_the_report_gathers_what_is_the_same() -> None:
    model = nn.Sequential(*[Plain() for _ in range(3)])
    assert "  0 and 2 more: Plain -> FusedPlain" in str(replace_attention(model))
    assert "  (the model): Plain -> FusedPlain" in str(replace_attention(Plain()))


def test_a_call_that_it_does_not_know_runs_the_library_and_says_so() -> None:
    model, x = Plain(), torch.randn(2, 4)
    wanted = model(x)
    replace_attention(model)
    with pytest.warns(UserWarning, match="Plain computes its own attention, because flag is given"):
        got = model(x, flag=True)
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_copies_and_pickles_compute_the_same(name: str) -> None:
    module, (arguments, options) = make(name), inputs(name)
    wanted = tensors(module(*arguments, **options))
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert [type(part) for part in twin.modules()] == [type(part) for part in module.modules()]
        for got, x in zip(tensors(twin(*arguments, **options)), wanted, strict=True):
            assert torch.equal(got, x)


def test_a_copy_in_the_block_stays_fused_after_it() -> None:
    model = Plain()
    with replace_attention(model):
        twin = copy.deepcopy(model)
    assert type(model) is Plain
    assert type(twin) is FusedPlain


def test_a_warning_says_why_nothing_gets_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(backends._registered, "cpu", raising=False)
    monkeypatch.setitem(backends._unavailable, "cpu", "torch came after mmer")
    with pytest.warns(UserWarning, match="nothing gets faster.*torch came after mmer"):
        assert replace_attention(Plain()).replaced
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replace_attention(Plain(), backend="reference")
        replace_attention(Plain().to("meta"))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "name"),
    [
        (([1],), {}, TypeError, "model"),
        ((nn.Linear(2, 2),), {"backend": "magic"}, ValueError, "backend"),
    ],
)
def test_errors_name_the_argument(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], name: str
) -> None:
    with pytest.raises(error, match=name):
        replace_attention(*arguments, **options)


def test_only_fused_classes_can_be_registered() -> None:
    with pytest.raises(TypeError, match="fused"):
        register_replacement(Plain)
    with pytest.raises(TypeError, match="derive"):
        register_replacement(FusedModule)


class Latents(nn.Module):
    """BiXT's attention (Hiller et al. 2024), from its equations: one set of latents for the batch.

    ``A = L R_lat^T``; the latents read the tokens through ``softmax(A)``, the tokens the latents
    through ``softmax(A^T)``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, 5, 12))
        self.of_latents, self.of_tokens = nn.Linear(12, 24), nn.Linear(12, 24)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        r_lat, v_lat = self.of_latents(self.latents).expand(len(tokens), -1, -1).chunk(2, dim=-1)
        r_tok, v_tok = self.of_tokens(tokens).chunk(2, dim=-1)
        scores = r_lat @ r_tok.mT / 12**0.5
        return scores.softmax(dim=-1) @ v_tok, scores.mT.softmax(dim=-1) @ v_lat


class FusedLatents(FusedModule, Latents):
    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        r_lat, v_lat = self.of_latents(self.latents)[:, None].chunk(2, dim=-1)
        r_tok, v_tok = self.of_tokens(tokens)[:, None].chunk(2, dim=-1)
        latents, tokens = mmer.shared_cross_attention(
            r_lat, r_tok, v_lat, v_tok, backend=self.attention_backend
        )
        return latents[:, 0], tokens[:, 0]


def test_latents_of_batch_1() -> None:
    """They are broadcast, and get the gradients of the whole batch."""
    register_replacement(FusedLatents)
    tokens = random_tensor(3, 63, 12, dtype=torch.float32, seed=0)
    assert_parity(randomise(Latents()), lambda module, x: module(*x), [tokens])


def test_mmmu_ba_of_the_example() -> None:
    example = runpy.run_path(str(EXAMPLE))
    register_replacement(example["FusedBiModalAttention"])
    inputs = [0.3 * random_tensor(2, 63, 100, dtype=torch.float32, seed=n) for n in range(3)]
    assert_parity(example["Model"](), lambda module, x: [module(*x)], inputs)
