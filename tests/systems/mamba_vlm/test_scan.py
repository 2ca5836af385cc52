import torch
import torch.nn.functional as F
from torch import Tensor

from raymed.systems.mamba_vlm import scan
from raymed.systems.mamba_vlm.kernels import described, fused_convolution, fused_scan
from raymed.systems.mamba_vlm.mamba import MambaMixer
from raymed.systems.mamba_vlm.scan import selective_scan, selective_step


def inputs(batch: int, length: int, channels: int = 6, states: int = 4) -> list[Tensor]:
    torch.manual_seed(0)
    x, B, C = (torch.randn(batch, length, size, dtype=torch.float64) for size in (channels, states, states))  # noqa: N806
    delta = torch.rand(batch, length, channels, dtype=torch.float64)
    A = -torch.rand(channels, states, dtype=torch.float64)  # noqa: N806
    return [tensor.requires_grad_() for tensor in (x, delta, A, B, C)]


def step_by_step(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:  # noqa: N803
    state, outputs = x.new_zeros(len(x), A.shape[1], x.shape[2]), []
    for time in range(x.shape[1]):
        y, state = selective_step(state, x[:, time], delta[:, time], A, B[:, time], C[:, time])
        outputs.append(y)
    return torch.stack(outputs, 1), state


def test_the_recurrence_has_the_values_of_a_calculation_by_hand() -> None:
    one = torch.ones(1, 2, 1)
    delta = F.softplus(torch.zeros(1, 2, 1))
    states, last = selective_scan(one, delta, -torch.ones(1, 1), one, one)
    torch.testing.assert_close(torch.exp(-delta[0, 0, 0]), torch.tensor(0.5))
    torch.testing.assert_close(states.flatten(), torch.tensor([0.693147, 1.039721]), atol=1e-6, rtol=0)
    torch.testing.assert_close(last.flatten(), states[0, 1])


def test_the_scan_and_its_gradients_are_those_of_the_loop_over_time(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    for elements, batch, length in ((48, 1, 9), (48, 2, 11), (10**6, 3, 7), (48, 1, 1)):  # several chunks, a short last one
        monkeypatch.setattr(scan, "CHUNK_ELEMENTS", elements)
        ours, reference = inputs(batch, length), inputs(batch, length)
        results = zip((selective_scan(*ours), step_by_step(*reference)), (ours, reference), strict=True)
        for (y, state), _ in results:
            (y.square().sum() + (state * state.detach().sin()).sum()).backward()
        torch.testing.assert_close(selective_scan(*ours), step_by_step(*reference))
        for tensor, wanted in zip(ours, reference, strict=True):
            torch.testing.assert_close(tensor.grad, wanted.grad)


def test_gradients_hold_where_only_the_state_or_only_the_output_is_used() -> None:
    assert torch.autograd.gradcheck(lambda *tensors: selective_scan(*tensors)[0], inputs(2, 5))
    assert torch.autograd.gradcheck(lambda *tensors: selective_scan(*tensors)[1], inputs(2, 5))


def test_memory_does_not_grow_with_length_times_states() -> None:
    x, delta, A, B, C = (tensor.detach().float().requires_grad_() for tensor in inputs(1, 4096, channels=64, states=16))  # noqa: N806
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        selective_scan(x, delta, A, B, C)
    assert sum(saved) < x.numel() * 16 / 4


def test_a_step_of_zero_leaves_the_state_as_it_is() -> None:
    x, delta, A, B, C = inputs(1, 6)  # noqa: N806
    mask = torch.tensor([1, 1, 1, 1, 0, 0])[None, :, None]
    _, padded = selective_scan(x, delta * mask, A, B, C)
    _, alone = selective_scan(x[:, :4], delta[:, :4], A, B[:, :4], C[:, :4])
    torch.testing.assert_close(padded, alone)


def test_a_mixer_goes_on_from_the_state_of_each_row_at_its_own_length() -> None:
    torch.manual_seed(0)
    mixer, tokens = MambaMixer(8, states=4), torch.randn(3, 9, 8)
    lengths = (7, 2, 1)
    mask = torch.arange(7) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        _, state = mixer.prefill(tokens[:, :7], mask)
        following, _ = mixer.step(tokens[:, 8], state)
        for row, length in enumerate(lengths):
            whole = mixer(torch.cat([tokens[row, :length], tokens[row, 8:]])[None])
            torch.testing.assert_close(following[row], whole[0, -1], atol=1e-6, rtol=1e-5)


def test_step_sizes_start_within_their_range() -> None:
    torch.manual_seed(0)
    steps = F.softplus(MambaMixer(64).dt_proj.bias)
    assert steps.min() >= 1e-3 * 0.999 and steps.max() <= 1e-1 * 1.001


def test_half_precision_around_it_leaves_the_scan_in_fp32_and_without_overflow() -> None:
    tensors = [tensor.detach().float() for tensor in inputs(2, 9)]
    y, state = selective_scan(*tensors)
    tensors[0], tensors[3] = tensors[0] * 300, tensors[3] * 300  # whose products leave the range of fp16
    with torch.autocast("cpu", torch.bfloat16):
        wide, last = selective_scan(*tensors)
        of_half, _ = selective_scan(*(tensor.bfloat16() for tensor in tensors))
    assert wide.dtype == last.dtype == of_half.dtype == torch.float32
    torch.testing.assert_close(wide, y * 300 * 300, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(last, state * 300 * 300, rtol=1e-4, atol=1e-2)


def test_which_kernels_compute_is_told() -> None:
    assert described(torch.device("cpu")) == "selective scan and convolution in torch, on cpu"
    if fused_scan() is None and fused_convolution() is None:
        assert "torch (mamba-ssm is not installed)" in described(torch.device("cuda"))
        assert "torch (causal-conv1d is not installed)" in described(torch.device("cuda"))
