import json
from pathlib import Path

import pytest
import torch
from processes import on_ranks, script
from text_tokenizer import word_tokenizer
from text_toys import VOCAB, mixture_of_experts
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from hfkd.evaluation import TextGenerator, generate
from hfkd.models.sampling import GumbelNoise

PROMPTS = [
    "Once upon a time",
    "One day, a big dog named Max",
    "",
    "The girl",
    "Sam and Tom ran to the park and",
    "A",
    "He",
]
SHORT = {"max_new_tokens": 24, "max_prompt_length": 32}


def test_text_does_not_depend_on_the_batch(stories):
    texts = generate(*stories, PROMPTS, batch_size=8, **SHORT)
    assert texts == generate(*stories, PROMPTS, batch_size=1, **SHORT)
    assert texts == generate(*stories, PROMPTS, batch_size=3, **SHORT)
    assert len(set(texts)) == len(PROMPTS)


def test_a_seed_gives_its_text_again_and_another_gives_another(stories):
    generator = TextGenerator(*stories, **SHORT)
    assert generator(PROMPTS[:2], seed=10) == generator(PROMPTS[:2], seed=10)
    assert generator(PROMPTS[:2], seed=10) != generator(PROMPTS[:2], seed=20)
    same_prompt = generator(["Once upon a time"] * 2)
    assert same_prompt[0] != same_prompt[1]


@pytest.mark.slow
def test_two_processes_write_what_one_writes(stories, data_dir, tmp_path):
    """Seven rows on two processes, then one row, which leaves a process with nothing of its own."""
    job = Path(__file__).with_name("generate_on_ranks.py")
    work = json.dumps({"prompts": PROMPTS, "settings": SHORT, "model": str(data_dir / "stories260K")})
    codes = on_ranks(tmp_path / "log", 2, script, job, work, str(tmp_path))
    assert codes == [0, 0], (tmp_path / "log-0").read_text()[-4000:]
    alone = [generate(*stories, prompts, seed=10, batch_size=2, **SHORT) for prompts in (PROMPTS, PROMPTS[:1])]
    for rank in (0, 1):
        found = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert found["texts"] == alone
    rows = [json.loads(line) for line in (tmp_path / "scores" / "tales-seed10.jsonl").read_text().splitlines()]
    assert [row["generation"] for row in rows] == alone[0]
    scores = [json.loads((tmp_path / f"rank{rank}.json").read_text())["scores"] for rank in (0, 1)]
    assert scores[0] == scores[1] == json.loads((tmp_path / "scores" / "scores.json").read_text())


def test_sampling_equals_a_naive_loop(stories):
    model, tokenizer = stories
    noise, ids = GumbelNoise([0], 10, torch.device("cpu")), tokenizer("One day")["input_ids"]
    start = len(ids)
    with torch.no_grad():
        for _ in range(20):
            scores = model(torch.tensor([ids])).logits[:, -1]
            ids.append(noise(None, scores / 0.7).argmax().item())
    expected = tokenizer.decode(ids[start:]).strip()
    [text] = generate(model, tokenizer, ["One day"], temperature=0.7, no_repeat_ngram_size=0, max_new_tokens=20)
    assert text == expected


def test_gpt2_greedy_text_is_that_of_the_prompt_alone(data_dir):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(data_dir / "gpt2-tokenizer")
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.5)).eval()
    prompts = ["A long prompt with many words in it", "Short"]
    settings = {"temperature": 0, "no_repeat_ngram_size": 0, "max_new_tokens": 8, "max_prompt_length": 16}
    texts = generate(model, tokenizer, prompts, **settings)
    for prompt, text in zip(prompts, texts, strict=True):
        ids = tokenizer(prompt)["input_ids"]
        for _ in range(8):
            ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
        assert text == tokenizer.decode(ids[-8:]).strip()


def test_text_ends_before_the_first_end_of_sequence(stories):
    model, tokenizer = stories
    settings = SHORT | {"max_new_tokens": 48, "no_repeat_ngram_size": 0, "temperature": 0}
    [whole] = generate(model, tokenizer, ["One day"], **settings)
    stop = tokenizer.convert_tokens_to_ids(".")
    assert "." in whole
    model.generation_config.eos_token_id = [stop, tokenizer.eos_token_id]  # as chat models bring an end of turn
    try:
        [cut] = generate(model, tokenizer, ["One day"], **settings)
    finally:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    assert cut == whole.split(".")[0].strip()


def test_a_word_is_no_end_of_sequence_because_the_architecture_has_it_as_default():
    """A Llama's is token 2, which in a tokenizer of one's own may be any word."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model, tokenizer = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, **sizes)), word_tokenizer()
    assert model.generation_config.eos_token_id == 2
    model.lm_head = torch.nn.Linear(8, VOCAB)
    with torch.no_grad():  # writes token 2, whatever came before
        model.lm_head.weight.zero_()
        model.lm_head.bias.copy_(torch.arange(VOCAB) == 2)
    settings = SHORT | {"max_new_tokens": 3, "no_repeat_ngram_size": 0, "temperature": 0}
    assert generate(model, tokenizer, ["ask me"], **settings) == ["<s> <s> <s>"]
    model.generation_config.eos_token_id = 3  # another one is that of the user
    with torch.no_grad():
        model.lm_head.bias.copy_(torch.arange(VOCAB) == 3)
    assert generate(model, tokenizer, ["ask me"], **settings) == [""]


def test_the_models_own_generation_settings_stay_out_and_come_back(stories):
    model, tokenizer = stories
    plain = generate(model, tokenizer, PROMPTS[:2], **SHORT)
    own = model.generation_config.to_dict()
    model.train()
    model.generation_config.update(repetition_penalty=5.0, do_sample=True, temperature=0.1, suppress_tokens=[400])
    changed = model.generation_config.to_dict()
    try:
        assert generate(model, tokenizer, PROMPTS[:2], **SHORT) == plain
        assert model.generation_config.to_dict() == changed
        assert model.training
    finally:
        model.eval()
        model.generation_config.update(**{name: own.get(name) for name in changed})


def test_a_long_prompt_keeps_its_first_tokens(stories, caplog):
    settings = {"max_new_tokens": 8, "max_prompt_length": 4}
    _, tokenizer = stories
    start = tokenizer.decode(tokenizer(PROMPTS[1])["input_ids"][:4], skip_special_tokens=True)
    assert generate(*stories, [PROMPTS[1]], **settings) == generate(*stories, [start], **settings)
    assert "1 of 1 prompts were truncated to their first 4 tokens" in caplog.text


def test_no_prompts_no_texts(stories):
    assert generate(*stories, []) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"max_new_tokens": 300},
            "256 and max_new_tokens=300 need 556 positions, but the model has 512: lower one of them by 44",
        ),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be 1 or more"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"temperature": -1.0}, "temperature=-1.0 must be 0 or more"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_p": 0.0}, "top_p=0.0 must be above 0"),
        ({"top_k": -1}, "top_k=-1"),
    ],
)
def test_bad_settings_are_refused_when_it_is_built(stories, settings, message):
    with pytest.raises(ValueError, match=message):
        TextGenerator(*stories, **settings)


def test_a_negative_seed_is_refused(stories):
    with pytest.raises(ValueError, match="seed=-1 must be 0 or more"):
        generate(*stories, ["A"], seed=-1, **SHORT)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft 0.21 reads it
def test_a_lora_student_is_generated_from_as_it_stands(data_dir, stories):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(data_dir / "stories260K")
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    before = model.generation_config.to_dict()
    assert generate(wrapped, stories[1], PROMPTS[:2], **SHORT) == generate(*stories, PROMPTS[:2], **SHORT)
    assert model.generation_config.to_dict() == before


def test_a_mixture_of_experts_with_a_router_loss_writes():
    """Which is computed over whole rows, and ends in an error for a single new token."""
    network, words = mixture_of_experts(), word_tokenizer()
    settings = {"max_new_tokens": 4, "max_prompt_length": 8, "temperature": 0.0}
    assert network.config.output_router_logits
    texts = generate(network, words, ["a b c d", "you"], **settings)
    assert network.config.output_router_logits
    network.config.output_router_logits = False
    assert texts == generate(network, words, ["a b c d", "you"], **settings)
