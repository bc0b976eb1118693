import warnings
from dataclasses import replace
from itertools import product

import pytest
import torch
from objectives_by_level import ON_LOGITS
from slots_by_level import temperature, weighting
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from hfkd.losses.base import Requirements, Temperature
from hfkd.losses.chunked import ChunkedLoss, _groups
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.heads import Head, LinearHead, head_of
from hfkd.losses.items import token_hidden, token_items
from hfkd.losses.logits import KD, OBJECTIVES, Average, Standardized
from hfkd.losses.temperatures import TEMPERATURES, Energy
from hfkd.losses.weightings import WEIGHTINGS, Matched
from hfkd.utils.targets import IGNORED

B, L, V, H, H_T = 2, 7, 19, 6, 10
N = 9  # targets left by the mask below
SPLITS = [1, 7, N, 100]


@pytest.fixture(autouse=True)
def _blocks_of_two_rows(monkeypatch):
    monkeypatch.setattr("hfkd.losses.chunked_outputs.BLOCK", 2 * V)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Tensors this small only wait for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def hidden_states():
    g = torch.Generator().manual_seed(1)
    hidden, taught = (3 * torch.randn(B, L, size, generator=g) for size in (H, H_T))
    labels = torch.randint(V, (B, L), generator=g)
    labels[0, :4] = IGNORED
    return hidden.requires_grad_(), taught, labels


def heads(bias=False):
    torch.manual_seed(3)
    return nn.Linear(H, V, bias=bias), nn.Linear(H_T, V, bias=bias).requires_grad_(False)


def run(loss, chunk_size, head, teacher_head, num_items=None, scale=1.0, states=None, num_classes=None):
    """Loss, parts and all gradients; chunk_size 0 is the dense loss."""
    hidden, taught, labels = states or hidden_states()
    trained = [hidden, *(p for p in [*head.parameters(), *loss.parameters()] if p.requires_grad)]
    if chunk_size:
        items = token_hidden(hidden, taught, labels, progress=30.0)
        value, parts = ChunkedLoss(loss, chunk_size, num_classes)(items, head, teacher_head, num_items)
    else:
        logits, said = head(hidden)[..., :num_classes], teacher_head(taught)[..., :num_classes].detach()
        value, parts = loss(token_items(logits, said, labels, progress=30.0), num_items)
    found = torch.autograd.grad(value * scale, trained, materialize_grads=True)
    return value.detach(), parts, found


def assert_same(chunked, dense):
    torch.testing.assert_close(chunked[0], dense[0], rtol=1e-5, atol=1e-6)
    assert list(chunked[1]) == list(dense[1])
    for name, part in dense[1].items():
        torch.testing.assert_close(chunked[1][name], part, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(chunked[2], dense[2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * max(theirs.abs().max().item(), 1e-3))


# ---- equal to the dense loss --------------------------------------------------------------------------------------


PER_ITEM = [name for name in ON_LOGITS if not OBJECTIVES[name]().requirements().relations]


@pytest.mark.parametrize(("objective", "t", "w"), list(product(PER_ITEM, TEMPERATURES, WEIGHTINGS)))
@pytest.mark.parametrize("level", ["sample", "item"])
def test_loss_parts_and_gradients_are_the_dense_ones(objective, t, w, level):
    loss = DistillationLoss(objective, temperature(t, level), weighting(w, level), 0.3, 0.7)
    dense = run(loss, 0, *heads())
    for chunk_size in SPLITS:
        assert_same(run(loss, chunk_size, *heads()), dense)


@pytest.mark.parametrize("chunk_size", SPLITS)
@pytest.mark.parametrize("num_items", [None, 50, torch.tensor(50)])
def test_a_bias_a_cut_vocabulary_and_a_divisor(chunk_size, num_items):
    loss = DistillationLoss("kd", temperature("energy"), "entropy")
    states = hidden_states()
    states = (*states[:2], states[2].clamp(max=V - 4))
    case = {"num_items": num_items, "num_classes": V - 3, "scale": 2.5, "states": states}
    assert_same(run(loss, chunk_size, *heads(bias=True), **case), run(loss, 0, *heads(bias=True), **case))


@pytest.mark.parametrize("which", ["weight", "bias", "neither"])
def test_frozen_parts_of_the_head_get_no_gradient(which):
    head, teacher_head = heads(bias=True)
    for name, parameter in head.named_parameters():
        parameter.requires_grad_(name == which)
    loss = DistillationLoss(weighting="entropy")
    assert_same(run(loss, 5, head, teacher_head), run(loss, 0, head, teacher_head))


class Learned(nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.1))

    def forward(self, items):
        return 2 + torch.sigmoid(self.slope * items.teacher.energy(1.0))


class Shifted(nn.Module):
    """An objective with a parameter."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.linspace(-1, 1, V))

    def forward(self, items, t):
        return KD()(replace(items, student=replace(items.student, logits=items.student.logits + self.shift)), t)


class LearnedWithin(Learned, Temperature):
    """One that looks at no more than a sample at a time, and says so."""

    def requirements(self):
        return Requirements(within_samples=True, signals=True)


@pytest.mark.parametrize("chunk_size", SPLITS)
@pytest.mark.parametrize("wrapped", [lambda shifted: shifted, Average])
@pytest.mark.parametrize("learned", [Learned, LearnedWithin])
def test_learned_temperatures_and_objectives_get_their_gradients(chunk_size, wrapped, learned):
    loss = DistillationLoss(wrapped(Shifted()), learned(), "entropy")
    dense = run(loss, 0, *heads())
    assert all(g.abs().sum() > 0 for g in dense[2])
    assert_same(run(loss, chunk_size, *heads()), dense)


@pytest.mark.parametrize("num_items", [10**6, torch.tensor(10**6)])
def test_gradients_in_float16_are_not_lost(num_items):
    """Divided by the items of a large step they are below what float16 holds; a scaler's factor comes later."""
    loss = DistillationLoss("kd", temperature("energy"), "entropy", 0.1, 0.9)
    whole = run(loss, 0, *heads(), num_items=num_items, scale=2.0**16)
    with torch.autocast("cpu", torch.float16):
        found = run(loss, 4, *heads(), num_items=num_items, scale=2.0**16)
    for mine, its in zip(found[2], whole[2], strict=True):
        assert (mine - its).norm() < 0.01 * its.norm()


def test_a_batch_without_targets_gives_loss_0_and_gradient_0():
    hidden, taught, labels = hidden_states()
    states = (hidden, taught, torch.full_like(labels, IGNORED))
    loss = DistillationLoss("kd", temperature("energy"), Matched(), 0.5, 0.5)
    value, parts, found = run(loss, 4, *heads(bias=True), states=states)
    assert value == 0
    assert all(p == 0 for p in parts.values())
    assert all(torch.equal(g, torch.zeros_like(g)) for g in found)


def test_without_kd_it_is_the_cross_entropy():
    loss = DistillationLoss(ce_weight=1.0, kd_weight=0)
    assert_same(run(loss, 7, *heads()), run(loss, 0, *heads()))


@pytest.mark.parametrize("general", [False, True])
def test_under_autocast_the_heads_run_in_bf16_and_the_statistics_in_float32(general):
    head, teacher_head = heads(bias=True)
    if general:
        head = nn.Sequential(head)
    loss = DistillationLoss("kd", temperature("energy"), "entropy")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        chunked, dense = run(loss, 5, head, teacher_head), run(loss, 0, head, teacher_head)
    torch.testing.assert_close(chunked[0], dense[0], rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(chunked[2], dense[2], strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.02 * theirs.abs().max().item())


def test_parameters_in_bf16_get_gradients_in_bf16():
    head, teacher_head = (h.bfloat16() for h in heads())
    hidden, taught, labels = hidden_states()
    states = (hidden.detach().bfloat16().requires_grad_(), taught.bfloat16(), labels)
    loss = DistillationLoss(weighting="entropy")
    chunked, dense = (run(loss, c, head, teacher_head, states=states) for c in (5, 0))
    for ours, theirs in zip(chunked[2], dense[2], strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=0, atol=0.02 * theirs.abs().max().item())


def test_without_gradient_it_gives_the_value_alone():
    hidden, taught, labels = hidden_states()
    loss, (head, teacher_head) = DistillationLoss(weighting="entropy"), heads()
    with torch.no_grad():
        value, _ = ChunkedLoss(loss, 5)(token_hidden(hidden, taught, labels), head, teacher_head)
    assert not value.requires_grad
    torch.testing.assert_close(value, run(loss, 0, head, teacher_head)[0])


@pytest.mark.parametrize("chunk_size", SPLITS)
def test_in_float64_it_is_the_dense_loss_to_ten_digits(chunk_size):
    states = (x.double() if x.is_floating_point() else x for x in hidden_states())
    states = [x.detach().requires_grad_(i == 0) for i, x in enumerate(states)]
    loss = DistillationLoss("kd", temperature("energy"), "entropy")
    chunked, dense = (run(loss, c, *(h.double() for h in heads(bias=True)), states=states) for c in (chunk_size, 0))
    for ours, theirs in zip((chunked[0], *chunked[2]), (dense[0], *dense[2]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_a_head_that_keeps_its_own_output_for_backward():
    linear, teacher_head = heads()
    head, loss = nn.Sequential(linear, nn.Tanh()), DistillationLoss(weighting="entropy")
    assert_same(run(loss, 5, head, teacher_head), run(loss, 0, head, teacher_head))


# ---- real models ----------------------------------------------------------------------------------------------------

SIZES = {"vocab_size": V, "bos_token_id": 0, "eos_token_id": 0}


def gpt2(width=8):
    torch.manual_seed(width)
    config = GPT2Config(n_positions=L, n_embd=width, n_layer=1, n_head=2, initializer_range=0.5, **SIZES)
    return GPT2LMHeadModel(config).eval()  # without dropout, to be compared


def llama():
    torch.manual_seed(5)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, **SIZES, initializer_range=0.5, tie_word_embeddings=False)).eval()


def lora(targets, **keywords):
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # merging an adapter of a tied head is not what is tested
        model = get_peft_model(gpt2(), LoraConfig(target_modules=targets, r=2, **keywords))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at first, which would hide the gradient of A
            nn.init.normal_(parameter)
    return model.eval()


def gradients_of(model, teacher, loss, chunk_size):
    model.zero_grad()
    ids = torch.randint(V, (B, L), generator=torch.Generator().manual_seed(2))
    labels = ids.masked_fill(torch.arange(L) < 3, IGNORED)
    if chunk_size:
        states = [last_hidden_state(m, ids) for m in (model, teacher)]
        items = token_hidden(states[0], states[1].detach(), labels)
        value, _ = ChunkedLoss(loss, chunk_size)(items, model.get_output_embeddings(), teacher.get_output_embeddings())
    else:
        value, _ = loss(token_items(model(input_ids=ids).logits, teacher(input_ids=ids).logits.detach(), labels))
    value.backward()
    return value, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def last_hidden_state(model, ids):
    """What the head reads, by a hook on the body: the model itself runs, as DDP wants it, and its head on one token."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    seen = []
    hook = causal.base_model.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    try:
        model(input_ids=ids, logits_to_keep=1)
    finally:
        hook.remove()
    return seen[0]


@pytest.mark.parametrize(
    "build",
    [
        gpt2,
        llama,
        lambda: lora(["c_attn"], fan_in_fan_out=True),
        lambda: lora(["c_attn", "lm_head"]),
        lambda: lora(["c_attn"], modules_to_save=["lm_head"]),
    ],
    ids=["tied", "untied", "lora on the body", "lora on the head", "a whole head saved by peft"],
)
@pytest.mark.parametrize("chunk_size", [4, 100])
def test_whole_models_get_the_dense_gradients(build, chunk_size):
    model, teacher = build(), gpt2(width=12)
    loss = DistillationLoss("kd", temperature("energy"), "entropy")
    (dense, expected), (chunked, found) = (gradients_of(model, teacher, loss, c) for c in (0, chunk_size))
    torch.testing.assert_close(chunked, dense)
    assert found.keys() == expected.keys()
    assert found
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item())


# ---- how it works ---------------------------------------------------------------------------------------------------


def test_a_plain_linear_head_is_done_by_hand_and_anything_else_by_autograd():
    hooked, patched = nn.Linear(2, 3), nn.Linear(2, 3)
    hooked.register_forward_hook(lambda module, args, output: 2 * output)
    patched.forward = lambda x: x @ patched.weight.T
    assert type(head_of(nn.Linear(2, 3))) is LinearHead
    assert all(type(head_of(m)) is Head for m in (hooked, patched, nn.Sequential(nn.Linear(2, 3))))


@pytest.mark.parametrize(("dtype", "numbers"), [(torch.float32, 16), (torch.bfloat16, 32)])
@pytest.mark.parametrize("bias", [False, True])
def test_rows_of_logits_start_on_cache_lines_whatever_the_vocabulary(dtype, numbers, bias):
    logits = head_of(nn.Linear(H, 50, bias=bias, dtype=dtype))(torch.randn(3, H))
    assert logits.shape == (3, 50)
    assert logits.stride(0) % numbers == 0


def passes(chunk_size, weights, calls=2):
    """How many rows went through each head in each call."""
    hidden, taught, labels = hidden_states()
    rows = {"student": 0, "teacher": 0}

    def counting(name):
        def hook(module, args, output):
            rows[name] += len(args[0]) if len(args[0]) > 1 else 0  # a single row asks for the number of classes

        return hook

    student_head, teacher_head = heads()
    student_head.register_forward_hook(counting("student"))
    teacher_head.register_forward_hook(counting("teacher"))
    chunked = ChunkedLoss(DistillationLoss("kd", temperature("energy"), weights), chunk_size)
    seen = []
    for _ in range(calls):
        rows.update(student=0, teacher=0)
        chunked(token_hidden(hidden, taught, labels), student_head, teacher_head)
        seen.append((rows["student"], rows["teacher"]))
    return seen


def test_whole_samples_pass_each_head_once():
    lengths = token_hidden(*hidden_states()).lengths
    assert sum(lengths) == N
    assert passes(max(lengths), "entropy") == [(N, N), (N, N)]
    assert passes(100, "entropy") == [(N, N), (N, N)]


def test_a_sample_longer_than_a_chunk_passes_twice():
    lengths = token_hidden(*hidden_states()).lengths
    size = max(lengths) - 2  # two chunks, of which the second has two rows: single ones are not counted
    twice = sum(length for length in lengths if length > size)
    assert 0 < twice < N
    assert passes(size, "entropy")[1] == (N + twice, N + twice)


def test_a_slot_that_looks_beyond_samples_has_a_pass_of_its_own_from_the_second_call_on():
    # A pass for the slots and one for the loss; the first call does not know yet that it will be asked twice.
    assert passes(100, weighting("matched")) == [(2 * N, 3 * N), (2 * N, 2 * N)]


@pytest.mark.parametrize(
    ("lengths", "size", "expected"),
    [
        ([3, 2, 4], 5, [(0, 5), (5, 9)]),
        ([3, 2, 4], 9, [(0, 9)]),
        ([2, 7, 0, 1], 5, [(0, 2), (2, 9), (9, 10)]),
        ([0, 0], 5, [(0, 0)]),
        ([], 5, [(0, 0)]),
    ],
)
def test_samples_share_a_chunk_while_they_fit(lengths, size, expected):
    assert [(group.start, group.stop) for group in _groups(lengths, size)] == expected


def test_a_parameters_gradient_is_accumulated_once():
    hidden, taught, labels = hidden_states()
    head, teacher_head = heads(bias=True)
    fired = []
    for name, parameter in head.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: fired.append(name))
    ChunkedLoss(DistillationLoss(), 3)(token_hidden(hidden, taught, labels), head, teacher_head)[0].backward()
    assert sorted(fired) == ["bias", "weight"]


def test_gradients_add_up_over_steps():
    hidden, taught, labels = hidden_states()
    head, teacher_head = heads()
    chunked = ChunkedLoss(DistillationLoss(), 3)
    for _ in range(2):
        chunked(token_hidden(hidden, taught, labels), head, teacher_head)[0].backward()
    torch.testing.assert_close(head.weight.grad, 2 * run(DistillationLoss(), 0, *heads())[2][1])


# ---- what it refuses ------------------------------------------------------------------------------------------------


def call(loss, **keywords):
    hidden, taught, labels = hidden_states()
    return ChunkedLoss(loss, 5, **keywords)(token_hidden(hidden, taught, labels), *heads())[0]


@pytest.mark.parametrize(
    "slots",
    [
        {"weighting": lambda items: 1 - items.teacher.logits.softmax(-1).amax(-1)},
        {"temperature": lambda items: items.student.logits.amax(-1)},
    ],
)
def test_a_slot_that_reads_logits_is_told_what_to_do(slots):
    with pytest.raises(ValueError, match=r"a chunked loss does not provide.*items.teacher.energy.*loss_chunk_size=0"):
        call(DistillationLoss(**slots))


@pytest.mark.parametrize("need", [{"student": ("2",)}, {"relations": True}])
def test_an_objective_that_needs_more_than_its_own_logits_is_refused_when_built(need):
    class Needs(KD):
        def requirements(self):
            return Requirements(**need)

    objective = Needs()
    for slot in (objective, Standardized(objective)) if "relations" in need else (objective,):
        with pytest.raises(ValueError, match="a chunked loss cannot compute: set loss_chunk_size=0"):
            ChunkedLoss(DistillationLoss(slot))


def test_backward_works_once():
    value = call(DistillationLoss())
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="works once"):
        value.backward()


def test_bad_values_and_different_vocabularies_are_refused():
    for keywords in (
        {"chunk_size": 0},
        {"chunk_size": None},
        {"chunk_size": 2.5},
        {"chunk_size": True},
        {"num_classes": -1},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(keywords))}=.* must be a whole number above 0"):
            ChunkedLoss(DistillationLoss(), **keywords)
    hidden, taught, labels = hidden_states()
    with pytest.raises(ValueError, match="the student gives 19 classes and the teacher 20"):
        ChunkedLoss(DistillationLoss())(token_hidden(hidden, taught, labels), heads()[0], nn.Linear(H_T, V + 1))


def test_energy_thresholds_split_these_items():
    """The tests above mean something: the temperature slot does choose different temperatures here."""
    hidden, taught, labels = hidden_states()
    items = token_items(heads()[0](hidden), heads()[1](taught), labels)
    assert len(items) == N
    slot = temperature("energy", "item")
    assert isinstance(slot, Energy)
    assert len(set(slot(items).tolist())) > 1
