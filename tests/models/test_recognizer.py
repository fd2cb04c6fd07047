"""The emotion recogniser: outputs, missing modalities, padding, and its life as a module."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from mmer.models import EmotionRecognizer, ModalityConfig, RecognizerConfig, RecognizerOutput
from mmer.models.encoder import TemporalEncoder
from mmer.models.losses import concordance, contrastive, cross_entropy
from mmer.models.stem import Tokens

BASE = RecognizerConfig(
    modalities={
        "eda": ModalityConfig(1, rate=4.0, patch=4),
        "acc": ModalityConfig(3, rate=2.0, patch=2),
        "video": ModalityConfig(5, rate=0.5, normalize=True),
    },
    num_classes=3,
    num_values=2,
    value_range=(1.0, 9.0),
    text_dim=6,
    embed_dim=8,
    num_heads=2,
    encoder_layers=2,
    kernel_size=3,
    chunk_size=3,
    dropout=0.0,
)
VARIANTS = {
    "default": {},
    "gated": {"modality_weights": "gated", "fusion": "shared", "fusion_layers": 2},
    "chunked": {"encoder": "chunked_attention", "summaries": True, "lookback": 0, "max_gap": 3.0},
    "late": {"fusion": "none", "modality_weights": "mean", "encoder_layers": 0},
    "sequence": {"output": "sequence"},
    "sequence mean": {"output": "sequence", "pooling": "mean", "fusion": "shared"},
}
SECONDS = 12


def made(seed: int = 0, **options: object) -> EmotionRecognizer:
    torch.manual_seed(seed)
    model = EmotionRecognizer(replace(BASE, **options)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


def samples(batch: int = 2, seconds: int = SECONDS) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {
        name: torch.randn(batch, int(modality.rate * seconds), modality.features)
        for name, modality in BASE.modalities.items()
    }


def all_real(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.ones(x.shape[:2], dtype=torch.bool) for name, x in values.items()}


def frames(model: EmotionRecognizer, batch: int = 2, count: int = SECONDS) -> Tensor | None:
    if model.config.output == "sequence":
        return None
    return (torch.arange(count) + 0.5).expand(batch, -1)


def tensors(output: RecognizerOutput) -> list[Tensor]:
    return [output.logits, output.values, output.embeddings, output.weights, output.text_embeddings]


def assert_same(got: RecognizerOutput, wanted: RecognizerOutput, *, exact: bool = True) -> None:
    tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(tensors(got), tensors(wanted), **tolerance)


@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_are_what_they_say(variant: str) -> None:
    model = made(**VARIANTS[variant])
    output = model(samples(), output_times=frames(model))
    count = 1 if model.config.output == "sequence" else SECONDS
    assert output.logits.shape == (2, count, 3)
    assert output.values.shape == (2, count, 2)
    assert output.embeddings.shape == (2, count, 8)
    assert output.text_embeddings.shape == (2, count, 6)
    assert ((output.values > 1.0) & (output.values < 9.0)).all()
    torch.testing.assert_close(output.weights.sum(dim=-1), torch.ones(2, count))
    mean = sum(
        output.weights[..., column, None] * output.modality_embeddings[name]
        for column, name in enumerate(BASE.modalities)
    )
    torch.testing.assert_close(output.embeddings, mean)
    torch.testing.assert_close(model.classify(output.embeddings), output.logits)
    assert model.classify(output.modality_embeddings["acc"]).shape == (2, count, 3)
    assert model.estimate(output.modality_embeddings["eda"]).shape == (2, count, 2)


def test_heads_that_are_not_asked_for_are_not_there() -> None:
    model = made(num_values=0, text_dim=None)
    output = model(samples())
    assert output.values is None
    assert output.text_embeddings is None
    with pytest.raises(ValueError, match="num_values"):
        model.estimate(output.embeddings)
    with pytest.raises(ValueError, match="text_dim"):
        model.text_scale  # noqa: B018
    with pytest.raises(ValueError, match="num_classes"):
        made(num_classes=None).classify(output.embeddings)


def test_output_times_are_the_first_modalitys_tokens_by_default() -> None:
    model = made()
    times = torch.arange(48.0).view(12, 4).mean(dim=1)[None].expand(2, -1) / 4
    assert_same(model(samples()), model(samples(), output_times=times))
    masks = all_real(samples())
    masks["eda"][1, 20:] = False
    output = model(samples(), masks)
    assert (output.embeddings[1, 5:] == 0).all()
    assert (output.embeddings[0, 5:] != 0).any()


def test_times_follow_from_the_rate_by_default() -> None:
    model = made()
    values = samples()
    times = {
        name: (torch.arange(x.shape[1]) / BASE.modalities[name].rate).expand(2, -1)
        for name, x in values.items()
    }
    output_times = frames(model)
    wanted = model(values, times=times, output_times=output_times)
    assert_same(model(values, output_times=output_times), wanted)
    late = {name: x + 1000.0 for name, x in times.items()}
    shifted = model(values, times=late, output_times=output_times + 1000.0)
    torch.testing.assert_close(tensors(shifted), tensors(wanted), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("missing", [["eda"], ["video"], ["acc", "video"]])
def test_a_missing_modality_gives_exactly_the_result_of_the_rest(
    variant: str, missing: list[str]
) -> None:
    model = made(**VARIANTS[variant])
    output_times = frames(model)
    values = samples()
    rest = {name: x for name, x in values.items() if name not in missing}
    wanted = model(rest, output_times=output_times)
    columns = [list(BASE.modalities).index(name) for name in missing]
    assert (wanted.weights[..., columns] == 0).all()

    masks = all_real(values)
    for name in missing:
        masks[name][:] = False
        values[name][:] = math.nan
    assert_same(model(values, masks, output_times=output_times), wanted)
    for name in missing:
        values[name], masks[name] = values[name][:, :0], masks[name][:, :0]
    assert_same(model(values, masks, output_times=output_times), wanted)


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_may_be_missing_for_one_item_only(variant: str) -> None:
    model = made(**VARIANTS[variant])
    output_times = frames(model, 3)
    values = samples(3)
    masks = all_real(values)
    masks["acc"][1] = False
    values["acc"][1] = math.nan
    values = {name: x.requires_grad_() for name, x in values.items()}
    output = model(values, masks, output_times=output_times)
    full = model(samples(3), output_times=output_times)
    rest = {name: x for name, x in samples(3).items() if name != "acc"}
    without = model(rest, output_times=output_times)
    for got, complete, partial in zip(
        tensors(output), tensors(full), tensors(without), strict=True
    ):
        torch.testing.assert_close(got[[0, 2]], complete[[0, 2]], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(got[1], partial[1], rtol=1e-6, atol=1e-6)
    assert (output.modality_embeddings["acc"][1] == 0).all()
    sum(x.square().sum() for x in tensors(output)).backward()
    for tensor in (*values.values(), *(p for p in model.parameters() if p.grad is not None)):
        assert tensor.grad.isfinite().all()
    assert (values["acc"].grad[1] == 0).all()


def test_it_is_the_result_of_a_model_that_never_had_the_modality() -> None:
    model = made(modality_weights="mean")
    smaller = {name: m for name, m in BASE.modalities.items() if name != "acc"}
    other = made(modality_weights="mean", modalities=smaller)
    other.load_state_dict(
        {key: x for key, x in model.state_dict().items() if key in other.state_dict()}
    )
    values = {name: x for name, x in samples().items() if name != "acc"}
    torch.testing.assert_close(
        model(values, output_times=frames(model)).logits,
        other(values, output_times=frames(model)).logits,
        rtol=1e-6,
        atol=1e-6,
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_item_without_any_sample_gets_the_heads_answer_to_zeros(variant: str) -> None:
    model = made(**VARIANTS[variant])
    values, masks = samples(), all_real(samples())
    for name in values:
        masks[name][1] = False
        values[name][1] = math.inf
    output = model(values, masks, output_times=frames(model))
    assert (output.embeddings[1] == 0).all()
    assert (output.weights[1] == 0).all()
    torch.testing.assert_close(output.logits[1, 0], model.class_head.bias)
    sum(x.square().sum() for x in tensors(output)).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_and_other_items_do_not_matter(variant: str) -> None:
    model = made(**VARIANTS[variant])
    alone = model(samples(1), output_times=frames(model, 1))
    values, masks = {}, {}
    for name, x in samples(1).items():
        junk = torch.full_like(x, math.nan)
        long = 100.0 * torch.randn(1, 2 * x.shape[1], x.shape[2])
        values[name] = torch.cat((torch.cat((x, junk), dim=1), long))
        masks[name] = torch.ones(2, long.shape[1], dtype=torch.bool)
        masks[name][0, x.shape[1] :] = False
    output_times, output_mask = None, None
    if model.config.output == "frame":
        output_times = torch.cat((frames(model, 1), torch.full((1, SECONDS), math.nan)), dim=1)
        output_times = torch.cat((output_times, frames(model, 1, 2 * SECONDS)))
        output_mask = ~output_times.isnan()
    output = model(values, masks, output_times=output_times, output_mask=output_mask)
    for got, wanted in zip(tensors(output), tensors(alone), strict=True):
        torch.testing.assert_close(got[:1, : wanted.shape[1]], wanted, rtol=1e-5, atol=1e-5)
        assert got.isfinite().all()
    if output_mask is not None:
        assert (output.embeddings[~output_mask] == 0).all()


def test_the_order_of_the_dictionary_does_not_matter() -> None:
    model = made()
    backwards = dict(reversed(samples().items()))
    wanted = model(samples(), output_times=frames(model))
    assert_same(model(backwards, output_times=frames(model)), wanted)


@pytest.mark.parametrize("encoder", ["tcn", "chunked_attention"])
def test_a_causal_encoder_sees_no_future(encoder: str) -> None:
    config = replace(BASE, encoder=encoder, causal=True, summaries=True, lookback=0)
    module = TemporalEncoder(config)
    x = torch.randn(1, 9, 8, requires_grad=True)
    mask, times = torch.ones(1, 9, dtype=torch.bool), torch.arange(9.0)[None]
    out = module(Tokens(x, mask, times)).values
    out[0, 4].square().sum().backward()
    assert (x.grad[0, 5:] == 0).all()
    assert (x.grad[0, 4] != 0).any()


def test_modality_dropout_hides_some_but_never_all_that_an_item_has() -> None:
    model = made(modality_dropout=0.7, modality_weights="mean").train()
    masks = all_real(samples(400))
    masks["eda"][:100] = False
    masks["video"][:100] = False
    masks["acc"][100] = masks["eda"][100] = masks["video"][100] = False
    kept = model._drop_modalities(masks)
    present = torch.stack([mask.any(dim=1) for mask in kept.values()], dim=1)
    assert present[:100, 1].all()
    assert not present[:100, [0, 2]].any()
    assert not present[100].any()
    assert present[101:].any(dim=1).all()
    counts = present[101:].sum(dim=0)
    # One is kept by lot where all three are drawn: .3 + .7 ** 3 / 3 of 299 items, about 124.
    assert ((counts > 90) & (counts < 160)).all()
    for name, mask in kept.items():
        assert (mask == (masks[name] & mask.any(dim=1, keepdim=True))).all()
    assert model.eval()._drop_modalities(masks) is masks


def test_modality_dropout_in_training_is_a_missing_modality() -> None:
    model = made(modality_dropout=0.5).train()
    values = samples(8)
    torch.manual_seed(5)
    output = model(values, output_times=frames(model, 8))
    torch.manual_seed(5)
    masks = model._drop_modalities(all_real(values))
    assert not all(mask.all() for mask in masks.values())
    assert_same(output, model.eval()(values, masks, output_times=frames(model, 8)))


def test_gated_weights_follow_the_input_and_start_equal() -> None:
    torch.manual_seed(0)
    model = EmotionRecognizer(replace(BASE, modality_weights="gated")).eval()
    weights = model(samples(), output_times=frames(model)).weights
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 3))
    weights = made(modality_weights="gated")(samples(), output_times=frames(model)).weights
    assert weights.std(dim=1).min() > 0


def test_text_scale_is_learnable_and_limited() -> None:
    model = EmotionRecognizer(BASE)
    torch.testing.assert_close(model.text_scale, torch.tensor(1 / 0.07))
    output = model(samples(), output_times=frames(model))
    classes = torch.randint(3, (2, SECONDS))
    loss = contrastive(output.text_embeddings, torch.randn(3, 6), classes, scale=model.text_scale)
    loss.backward()
    assert model.log_text_scale.grad != 0
    nn.init.constant_(model.log_text_scale, 50.0)
    torch.testing.assert_close(model.text_scale, torch.tensor(100.0))


def test_learns_from_several_modalities() -> None:
    """The class is in one modality's sign times another's: none tells it alone."""
    torch.manual_seed(0)
    config = replace(BASE, dropout=0.0, encoder_layers=1, gate_init=1.0)
    model = EmotionRecognizer(config)
    signs = torch.randint(0, 2, (64, 2)) * 2.0 - 1.0
    values = samples(64)
    values["eda"] = values["eda"].abs() * signs[:, 0, None, None]
    values["acc"] = values["acc"].abs() * signs[:, 1, None, None]
    classes = (signs.prod(dim=1) > 0).long()[:, None].expand(-1, SECONDS)
    targets = signs[:, None].expand(-1, SECONDS, -1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        output = model(values, output_times=frames(model, 64))
        loss = cross_entropy(output.logits, classes) + concordance(output.values, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    accuracy = (output.logits.argmax(dim=-1) == classes).float().mean()
    assert accuracy > 0.95


def frozen_keys() -> set[str]:
    linear = ("weight", "bias")
    keys = {"modality_scores", "to_text.weight", "log_text_scale"}
    keys |= {f"{head}.{kind}" for head in ("class_head", "value_head") for kind in linear}
    keys |= {f"stems.video.norm.{kind}" for kind in linear}
    parts = [f"{layer}_{half}" for layer in ("convolution", "norm") for half in (1, 2)]
    side = ("norm", "feed_forward_norm", "feed_forward.widen", "feed_forward.narrow")
    for kind in linear:
        for name in BASE.modalities:
            keys |= {f"stems.{name}.projection.{kind}", f"norms.{name}.{kind}"}
            keys |= {f"encoders.{name}.tcn.blocks.{i}.{p}.{kind}" for i in (0, 1) for p in parts}
            keys |= {f"fusion.0.sides.{name}.{part}.{kind}" for part in side}
        for pair in ("eda__acc", "eda__video", "acc__video"):
            projections = ("to_qkv_a", "to_qkv_b", "to_out_a", "to_out_b")
            keys |= {f"fusion.0.attention.{pair}.{part}.{kind}" for part in projections}
            keys.add(f"fusion.0.attention.{pair}.raw_decay")
    return keys | {f"fusion.0.sides.{name}.gate" for name in BASE.modalities}


def test_state_dict_is_frozen() -> None:
    assert set(EmotionRecognizer(BASE).state_dict()) == frozen_keys()
    gated = EmotionRecognizer(replace(BASE, modality_weights="gated", output="sequence"))
    extra = set(gated.state_dict()) - frozen_keys()
    assert extra == {"pooling.score.weight", "pooling.score.bias"} | {
        f"gates.{name}.{kind}" for name in BASE.modalities for kind in ("weight", "bias")
    }
    chunked = EmotionRecognizer(replace(BASE, encoder="chunked_attention"))
    extra = {key for key in set(chunked.state_dict()) - frozen_keys() if ".eda." in key}
    assert extra == {
        f"encoders.eda.blocks.{i}.{part}.{kind}"
        for i in (0, 1)
        for part in (
            "attention_norm",
            "attention.to_qkv",
            "attention.to_out",
            "feed_forward_norm",
            "feed_forward.widen",
            "feed_forward.narrow",
        )
        for kind in ("weight", "bias")
    }


def test_one_modality_has_nothing_to_fuse() -> None:
    model = EmotionRecognizer(replace(BASE, modalities={"eda": BASE.modalities["eda"]}))
    assert len(model.fusion) == 0
    assert model.modality_scores is None
    output = model({"eda": samples()["eda"]})
    assert (output.weights == 1).all()


@pytest.mark.parametrize("variant", ["default", "chunked", "sequence"])
def test_copies_and_pickles_give_the_same_numbers(variant: str) -> None:
    model = made(**VARIANTS[variant])
    wanted = model(samples(), output_times=frames(model))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same(twin(samples(), output_times=frames(model)), wanted)
        assert twin.config == model.config
    rebuilt = EmotionRecognizer(RecognizerConfig.from_dict(model.config.to_dict())).eval()
    rebuilt.load_state_dict(model.state_dict())
    assert_same(rebuilt(samples(), output_times=frames(model)), wanted)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_model_made_on_the_meta_device_is_filled_by_reset_parameters(variant: str) -> None:
    model = EmotionRecognizer(replace(BASE, **VARIANTS[variant]), device="meta")
    assert all(parameter.is_meta for parameter in model.parameters())
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    model.reset_parameters()
    output = model.eval()(samples(), output_times=frames(model))
    assert all(tensor.isfinite().all() for tensor in tensors(output))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "encoder": "chunked_attention",
            "summaries": True,
            "fusion": "shared",
            "output": "sequence",
        },
    ],
)
def test_compiles_in_one_graph(options: dict) -> None:
    torch._dynamo.reset()
    two = {name: BASE.modalities[name] for name in ("eda", "acc")}
    model = made(**options, modalities=two, encoder_layers=1)
    values = {name: x for name, x in samples().items() if name in two}
    masks = all_real(values)
    masks["acc"][1] = False
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    got = compiled(values, masks, output_times=frames(model))
    assert_same(got, model(values, masks, output_times=frames(model)), exact=False)
    sum(x.sum() for x in tensors(got)).backward()


def test_autocast_and_double_precision() -> None:
    model = made()
    wanted = model(samples(), output_times=frames(model))
    double = copy.deepcopy(model).double()
    values = {name: x.double() for name, x in samples().items()}
    exact = double(values, output_times=frames(model))
    assert exact.logits.dtype == torch.float64
    torch.testing.assert_close(exact.logits.float(), wanted.logits, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(samples(), output_times=frames(model))
    torch.testing.assert_close(half.logits.float(), wanted.logits, rtol=0.1, atol=0.1)


def test_repr_tells_what_it_predicts() -> None:
    assert "output='frame', num_classes=3, num_values=2" in repr(EmotionRecognizer(BASE))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"values": [1]}, TypeError, "values must map"),
        ({"values": {}}, ValueError, "values must have samples of at least one of eda, acc, video"),
        ({"values": {"eda": torch.zeros(2, 0, 1)}}, ValueError, "values must have samples"),
        ({"values": {"eda": [[1.0]]}}, TypeError, r"values\['eda'\]"),
        ({"values": {"eeg": torch.zeros(2, 4, 1)}}, ValueError, "values.*'eeg'"),
        ({"masks": {"eeg": torch.zeros(2, 4)}}, ValueError, "masks.*'eeg'"),
        ({"times": {"eeg": torch.zeros(2, 4)}}, ValueError, "times.*'eeg'"),
        ({"values": {"eda": torch.zeros(2, 48, 2)}}, ValueError, r"values\['eda'\]"),
        ({"values": {"eda": torch.zeros(2, 48)}}, ValueError, r"values\['eda'\]"),
        ({"values": {"eda": torch.zeros(2, 48, 1).long()}}, TypeError, r"values\['eda'\]"),
        ({"values": {**samples(), "acc": torch.zeros(3, 4, 3)}}, ValueError, r"values\['acc'\]"),
        ({"masks": {"eda": torch.ones(2, 48)}}, TypeError, r"masks\['eda'\]"),
        ({"times": {"acc": torch.ones(2, 48)}}, ValueError, r"times\['acc'\]"),
        ({"output_times": torch.zeros(3, 4)}, ValueError, "output_times"),
        ({"output_times": torch.zeros(2, 4).long()}, TypeError, "output_times"),
        ({"output_mask": torch.ones(2, 4, dtype=torch.bool)}, ValueError, "output_mask"),
        ({"values": {"acc": torch.zeros(2, 24, 3)}}, ValueError, "output_times.*'eda'"),
    ],
)
def test_errors_name_the_argument(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        made()(**{"values": samples(), **arguments})


def test_more_errors() -> None:
    with pytest.raises(TypeError, match="config must be a RecognizerConfig"):
        EmotionRecognizer({"num_classes": 3})
    irregular = {**BASE.modalities, "video": ModalityConfig(5)}
    with pytest.raises(ValueError, match=r"times\['video'\] must be given"):
        made(modalities=irregular)(samples())
    with pytest.raises(ValueError, match="output_times must be None"):
        made(output="sequence")(samples(), output_times=torch.zeros(2, 3))
