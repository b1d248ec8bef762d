"""Templates."""

import pytest

from kerasrlhf.data import dialogue

DIALOGUE = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Bye"},
]
REPLY = [{"role": "assistant", "content": "See you."}]


def brackets(messages, add_generation_prompt=False):
    text = "".join(f"[{m['role']}]{m['content']}" for m in messages)
    return text + ("[assistant]" if add_generation_prompt else "")


def test_plain():
    text = "Be kind.\n\nHuman: Hello\n\nAssistant: Hi.\n\nHuman: Bye"
    assert dialogue.render(DIALOGUE) == text
    assert dialogue.render(DIALOGUE, add_generation_prompt=True) == text + "\n\nAssistant:"


def test_chatml():
    text = (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\nHi.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
    )
    assert dialogue.render(DIALOGUE, "chatml") == text
    prompt = dialogue.render(DIALOGUE, "chatml", add_generation_prompt=True)
    assert prompt == text + "<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("template", "end"), [("plain", ""), ("chatml", "<|im_end|>\n"), (brackets, "")]
)
def test_a_reply_completes_its_prompt(template, end):
    prompt = dialogue.render(DIALOGUE, template, add_generation_prompt=True)
    reply = dialogue.reply(DIALOGUE, REPLY, template)
    assert reply.strip() == "See you."
    assert prompt + reply + end == dialogue.render(DIALOGUE + REPLY, template)


def test_a_callable_knows_its_own_roles():
    messages = [{"role": "tool", "content": "42"}]
    assert dialogue.render(messages, brackets) == "[tool]42"


@pytest.mark.parametrize(
    ("messages", "template", "message"),
    [
        ("text", "plain", "must be a list"),
        (["text"], "plain", "must be a dictionary"),
        ([{"role": "user"}], "plain", "'role' and 'content'"),
        ([{"role": "user", "text": "a"}], "plain", "'role' and 'content'"),
        ([{"role": "user", "content": None}], "plain", "content must be a string"),
        ([{"role": "robot", "content": "a"}], "chatml", "Unknown role 'robot'"),
        (DIALOGUE, "jinja", "Unknown template 'jinja'"),
    ],
)
def test_bad_messages(messages, template, message):
    with pytest.raises(ValueError, match=message):
        dialogue.render(messages, template)


def test_bad_replies():
    with pytest.raises(
        ValueError, match=r"begin with a message whose role is 'assistant'.*\['user'"
    ):
        dialogue.reply([], DIALOGUE[1:])
    with pytest.raises(ValueError, match="role is 'assistant'"):
        dialogue.reply(DIALOGUE, [])
    with pytest.raises(ValueError, match="not render a dialogue as a continuation"):
        dialogue.reply(
            DIALOGUE, REPLY, lambda messages, add_generation_prompt=False: "x" * len(messages) + "y"
        )
