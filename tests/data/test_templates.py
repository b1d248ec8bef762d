"""Templates of published models: what they write, and the ones in folders of models."""

import json

import keras_hub
import pytest

from kerasrlhf import data, presets, tokens
from kerasrlhf.data import dialogue, records, templates

DIALOGUE = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hello "},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "See you."},
]
# As the templates of Llama-3-8B-Instruct, Phi-3-mini, gemma-3-it and Mistral-7B-Instruct-v0.3
# render it, without the start token.
WRITTEN = {
    "llama3": (
        "<|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHi.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nSee you.<|eot_id|>"
    ),
    "phi3": (
        "<|system|>\nBe kind.<|end|>\n<|user|>\nHello <|end|>\n<|assistant|>\nHi.<|end|>\n"
        "<|user|>\nBye<|end|>\n<|assistant|>\nSee you.<|end|>\n"
    ),
    "gemma": (
        "<start_of_turn>user\nBe kind.\n\nHello<end_of_turn>\n"
        "<start_of_turn>model\nHi.<end_of_turn>\n<start_of_turn>user\nBye<end_of_turn>\n"
        "<start_of_turn>model\nSee you.<end_of_turn>\n"
    ),
    "mistral": "[INST] Be kind.\n\nHello[/INST] Hi.</s>[INST] Bye[/INST] See you.</s>",
    "chatml": (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello <|im_end|>\n"
        "<|im_start|>assistant\nHi.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
        "<|im_start|>assistant\nSee you.<|im_end|>\n"
    ),
    "plain": "Be kind.\n\nHuman: Hello \n\nAssistant: Hi.\n\nHuman: Bye\n\nAssistant: See you.",
}
# In the language of Jinja, with what published templates use.
SOURCE = """\
{%- if messages[0]['role'] == 'tool' %}{{ raise_exception('No tools.') }}{% endif %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}{% generation %}{{ message['content'] + '<|im_end|>' }}\
{% endgeneration %}{{ '\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def test_every_built_in_template_is_written_out():
    assert {*WRITTEN} == {*templates.BUILT_IN}


@pytest.mark.parametrize("name", WRITTEN)
def test_the_text_is_the_published_one(name):
    assert dialogue.render(DIALOGUE, name) == WRITTEN[name]


@pytest.mark.parametrize("name", WRITTEN)
def test_prompt_and_reply_are_the_whole_but_for_the_end(name):
    prompt = dialogue.render(DIALOGUE[:-1], name, add_generation_prompt=True)
    reply = dialogue.reply(DIALOGUE[:-1], DIALOGUE[-1:], name)
    assert reply.strip() == "See you."
    end = dialogue.turn_end(name) or ""
    assert (prompt + reply + end).rstrip() == WRITTEN[name].rstrip()


@pytest.mark.parametrize("name", WRITTEN)
def test_turns_are_the_replies_with_their_ends(name):
    pairs = dialogue.turns(DIALOGUE, name)
    end = dialogue.turn_end(name) or ""
    assert [reply.strip() for _, reply in pairs] == [f"Hi.{end}", "See you."]
    assert "".join(a + b for a, b in pairs) + end == WRITTEN[name].rstrip()


@pytest.mark.parametrize("name", ["gemma", "mistral"])
def test_a_late_message_of_the_system_is_refused_where_it_has_no_turn(name):
    with pytest.raises(ValueError, match=r"must come first.*\['user', 'system'\]"):
        dialogue.render([DIALOGUE[1], DIALOGUE[0]], name)


@pytest.mark.parametrize("name", ["llama3", "chatml"])
def test_the_end_of_a_turn_ends_a_response_in_training_and_sampling(name, tokenizers):
    stories = keras_hub.models.CausalLMPreprocessor.from_preset(presets.TINY_STORIES)
    preprocessor = {"llama3": stories, "chatml": tokenizers["qwen"]}[name]
    rows = data.demonstrations([{"messages": DIALOGUE[1:3]}], preprocessor, 1, template=name)
    ((_, targets, weights),) = rows.as_numpy_iterator()
    (end,) = tokens.tokenize([dialogue.turn_end(name)], preprocessor, parse_special=True)
    assert [targets[weights > 0][-1]] == end
    assert end[0] in tokens.stop_ids(preprocessor)


def folder(tmp_path, **config):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize("token", ["<s>", {"content": "<s>", "lstrip": False}])
def test_the_template_of_a_model(tmp_path, token):
    path = folder(tmp_path, bos_token=token, eos_token="</s>", chat_template=SOURCE)
    template = dialogue.load_template(str(path))
    assert dialogue.render(DIALOGUE, template) == "<s>" + WRITTEN["chatml"]
    row = {"messages": DIALOGUE}
    assert records.demonstration_texts([row], template)[0] == [
        "<s>" + dialogue.render(DIALOGUE[:-1], "chatml", add_generation_prompt=True)
    ]
    assert "ChatTemplate(" in repr(template)


def test_a_template_may_be_a_file_or_one_of_several(tmp_path):
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "usual"}]
    path = folder(tmp_path, chat_template=named)
    assert data.ChatTemplate.from_folder(path)(DIALOGUE) == "usual"
    (path / "chat_template.jinja").write_text("{{ messages | length }} {{ {'a': '<é>'} | tojson }}")
    assert data.ChatTemplate.from_folder(path)(DIALOGUE) == '5 {"a": "<é>"}'


def test_a_template_cannot_reach_out_of_its_sandbox():
    template = data.ChatTemplate("{{ messages.__class__.__mro__ }}")
    with pytest.raises(ValueError, match=r"does not take these messages: .*unsafe"):
        template(DIALOGUE)


def test_bad_templates(tmp_path):
    with pytest.raises(ValueError, match=r"has no chat template.*one of \['chatml', 'gemma'"):
        data.ChatTemplate.from_folder(tmp_path)
    with pytest.raises(ValueError, match=r"not valid: .* \(line 1\)"):
        data.ChatTemplate("{% for %}")
    with pytest.raises(ValueError, match=r"No tools\. \(roles \['tool'\]\)"):
        data.ChatTemplate(SOURCE)([{"role": "tool", "content": "42"}])
