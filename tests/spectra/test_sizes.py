"""What is counted on the meta device is what a device saves."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from lite_probe.checkpoints.models import build_skeleton, parse_config
from lite_probe.errors import InputError
from lite_probe.operators.guards import preserve_state
from lite_probe.spectra.sizes import count_graph, footprint, sharded_footprint
from tests.families import CONFIGS, make_model

EXPERTS = {"olmoe", "deepseek_v3"}


def skeleton_of(family: str) -> PreTrainedModel:
    return build_skeleton(parse_config(CONFIGS[family], num_tensors=100))


def saved_on_the_cpu(family: str, rows: int, seq_len: int) -> int:
    """Bytes that autograd saves of a product on real numbers."""
    model = make_model(CONFIGS[family])
    parameters = list(model.parameters())
    own = {tensor.untyped_storage().data_ptr() for tensor in (*parameters, *model.buffers())}
    saved: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor.detach()
        return tensor.detach()

    tokens = torch.randint(0, 256, (rows, seq_len + 1), generator=torch.Generator().manual_seed(0))
    with preserve_state(model), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        mask = torch.ones(rows, seq_len, dtype=torch.long)
        logits = model(input_ids=tokens[:, :-1], attention_mask=mask, use_cache=False).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")
        gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        used = [gradient for gradient in gradients if gradient is not None and gradient.requires_grad]
        torch.autograd.grad(used, parameters, [torch.ones_like(one) for one in used], True, allow_unused=True)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


@pytest.mark.parametrize("family", sorted(set(CONFIGS) - EXPERTS - {"mamba"}))
def test_the_graph_is_counted_to_the_byte(family: str) -> None:
    assert count_graph(skeleton_of(family), rows=2, seq_len=16) == saved_on_the_cpu(family, 2, 16)


def test_a_graph_grows_with_the_rows_and_more_with_their_length() -> None:
    skeleton = skeleton_of("olmo")
    one, two, long = (
        count_graph(skeleton, rows=rows, seq_len=seq_len) for rows, seq_len in ((1, 16), (2, 16), (1, 32))
    )
    assert one < two < 2 * one  # what does not depend on the rows is there once
    assert long > two  # the same tokens, with attention between all of them


@pytest.mark.parametrize("family", sorted(EXPERTS))
def test_experts_depend_on_the_tokens(family: str) -> None:
    with pytest.raises(InputError, match=f"does not depend on its tokens, got a {family}") as caught:
        count_graph(skeleton_of(family), rows=1, seq_len=16)
    assert "--dry-run" in caught.value.hint


def test_gpus_share_the_basis_and_send_a_ring_of_every_product() -> None:
    skeleton = skeleton_of("gpt_neox")
    vector = 4 * sum(parameter.numel() for parameter in skeleton.parameters())
    alone, four = (footprint(skeleton, graph_bytes=1000, gpus=gpus, basis_columns=45) for gpus in (1, 4))
    assert alone.sent_bytes == 0
    assert four.sent_bytes == 2 * vector * 3 // 4
    assert alone.basis_bytes == 48 * vector
    assert four.basis_bytes == 12 * vector
    assert alone.held_bytes - four.held_bytes == 36 * vector


def test_shards_hold_a_share_of_the_weights_and_send_them_for_either_gradient() -> None:
    skeleton = skeleton_of("gpt_neox")
    vector = 4 * sum(parameter.numel() for parameter in skeleton.parameters())
    two, four = (sharded_footprint(skeleton, graph_bytes=1000, gpus=gpus, basis_columns=45) for gpus in (2, 4))
    assert four.sent_bytes == 6 * vector * 3 // 4
    assert two.weights_bytes - four.weights_bytes == vector // 4
    assert two.basis_bytes + two.vectors_bytes == 2 * (four.basis_bytes + four.vectors_bytes)


def test_a_gradient_saves_less_than_a_product() -> None:
    skeleton = skeleton_of("gpt_neox")
    once, twice = (count_graph(skeleton, rows=1, seq_len=16, twice=one) for one in (False, True))
    assert 0 < once < twice / 2
