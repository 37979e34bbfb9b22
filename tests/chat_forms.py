"""The forms of chat templates that published models have, with one small template of our own for each.

`answer` is the text generated for "Paris." in that form; `pieces` is the number of training sequences that a chat with
two answers becomes; `thought` is the text generated for a thought before "Paris.", None if the template does not
support thoughts. `ends_open`: the template does not end the last answer.
"""

from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers_made import byte_bpe
from transformers import PreTrainedTokenizerFast

from togi.text.template import Template, own_template


@dataclass(frozen=True, kw_only=True)
class Form:
    source: str
    terminator: str
    generation: str
    answer: str
    pieces: int = 1
    thought: str | None = "<think>\nwhy\n</think>\n\n"
    system: bool = True
    ends_open: bool = False
    tokens: tuple[str, ...] = ()
    rstrip: bool = False


IM = ("<|im_start|>", "<|im_end|>")
TURN = "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
LOOP, END = "{% for m in messages %}", "{% endfor %}"
HEAD = "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}"
HEADER = "<|start_header_id|>assistant<|end_header_id|>\n\n"
ASK_HEAD = "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
LLAMA = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
SAID = (
    "{% set said = m.content %}{% set mind = m.reasoning_content | default('') %}{% if '</think>' in said %}"
    "{% set mind = said.split('</think>')[0].split('<think>')[-1].strip() %}"
    "{% set said = said.split('</think>')[-1].lstrip() %}{% endif %}"
)
LAST_USER = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}"
)
TOOLS = "{% if tools %}{{ '<tools>' + (tools | tojson) + '</tools>\\n' }}{% endif %}"
CALLS = (
    "{% for call in m.tool_calls or [] %}"
    "{{ '<tool_call>\\n' + (call.function | tojson) + '\\n</tool_call>' }}{% endfor %}"
)
DEEP = ("<｜User｜>", "<｜Assistant｜>")

FORMS = {
    "chatml": Form(
        source=LOOP + TURN + END + ASK,
        terminator="<|im_end|>",
        generation="<|im_start|>assistant\n",
        answer="Paris.<|im_end|>",
        tokens=IM,
    ),
    "chatml, several tokens": Form(
        source=LOOP + TURN + END + ASK,
        terminator="<|im_end|>",
        generation="<|im_start|>assistant\n",
        answer="Paris.<|im_end|>",
    ),
    "a default system turn and tools": Form(
        source="{% if messages[0].role != 'system' or tools %}{{ '<|im_start|>system\\nBe kind.\\n' }}"
        + TOOLS
        + "{{ '<|im_end|>\\n' }}{% endif %}"
        + LOOP
        + "{{ '<|im_start|>' + m.role + '\\n' + m.content }}"
        + CALLS
        + "{{ '<|im_end|>\\n' }}"
        + END
        + ASK,
        terminator="<|im_end|>",
        generation="<|im_start|>assistant\n",
        answer="Paris.<|im_end|>",
        tokens=IM,
    ),
    "eos after the last turn": Form(
        source=LOOP
        + "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}"
        "<|im_start|>assistant\n{% else %}{{ eos_token }}{% endif %}",
        terminator="<|im_end|>",
        generation="<|im_start|>assistant\n",
        answer="Paris.<|im_end|>",
        tokens=IM,
    ),
    "eos after the last turn, several tokens": Form(
        source=LOOP
        + "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}"
        "<|im_start|>assistant\n{% else %}{{ eos_token }}{% endif %}",
        terminator="<|im_end|>",
        generation="<|im_start|>assistant\n",
        answer="Paris.<|im_end|>",
    ),
    "tokens that take line ends along": Form(
        source=LOOP
        + "{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}",
        terminator="<|end|>",
        generation="<|assistant|>\n",
        answer="Paris.<|end|>",
        tokens=("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
        rstrip=True,
    ),
    "eos without a line end": Form(
        source=LOOP + "{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}",
        terminator="<|end|>",
        generation="<|assistant|>",
        answer="Paris.<|end|>",
        tokens=("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
    ),
    "thoughts leave the history": Form(
        source=LAST_USER
        + LOOP
        + SAID
        + "{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' and loop.index0 > ns.last %}"
        "{{ '<think>\\n' + mind + '\\n</think>\\n\\n' }}{% endif %}{{ said + '<|im_end|>\\n' }}" + END + ASK,
        terminator="<|im_end|>",
        generation="<|im_start|>assistant\n",
        answer="<think>\n\n</think>\n\nParis.<|im_end|>",
        pieces=2,
        tokens=IM,
    ),
    "the prompt begins a thought that the last turn has": Form(
        source=LAST_USER
        + LOOP
        + SAID
        + "{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' and loop.index0 > ns.last %}"
        "{{ '<think>\\n' + mind + '\\n</think>\\n\\n' }}{% endif %}{{ said + '<|im_end|>\\n' }}"
        + END
        + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}",
        terminator="<|im_end|>",
        generation="<|im_start|>assistant\n<think>\n",
        answer="\n</think>\n\nParis.<|im_end|>",
        thought="why\n</think>\n\n",
        pieces=2,
        tokens=IM,
    ),
    "the prompt begins a thought that no turn has": Form(
        source="{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
        "{% elif m.role == 'user' %}{{ '<｜User｜>' + m.content }}{% else %}"
        "{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}",
        terminator="</s>",
        generation="<｜Assistant｜><think>\n",
        answer="\n</think>\n\nParis.</s>",
        thought="why\n</think>\n\n",
        pieces=2,
        tokens=DEEP,
    ),
    "the prompt holds an empty thought": Form(
        source=LOOP
        + SAID
        + "{{ '<|im_start|>' + m.role + '\\n' + said + '<|im_end|>\\n' }}"
        + END
        + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' }}{% endif %}",
        terminator="<|im_end|>",
        generation="<|im_start|>assistant\n<think>\n\n</think>\n\n",
        answer="Paris.<|im_end|>",
        thought=None,
        pieces=2,
        tokens=IM,
    ),
    "no thoughts at all": Form(
        source="{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
        "{% elif m.role == 'user' %}{{ '<｜User｜>' + m.content }}{% else %}"
        "{{ '<｜Assistant｜></think>' + m.content.split('</think>')[-1].strip() + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<｜Assistant｜></think>' }}{% endif %}",
        terminator="</s>",
        generation="<｜Assistant｜></think>",
        answer="Paris.</s>",
        thought=None,
        tokens=DEEP,
    ),
    "headers": Form(
        source="{{ bos_token }}" + LOOP + HEAD + END + ASK_HEAD,
        terminator="<|eot_id|>",
        generation=HEADER,
        answer="Paris.<|eot_id|>",
        tokens=LLAMA,
    ),
    "headers, a date if there is one, tools": Form(
        source="{% set today = strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' %}"
        "{{ bos_token + '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + today + '\\n\\n' }}"
        "{% if messages[0].role == 'system' %}{{ messages[0].content | trim }}"
        "{% set messages = messages[1:] %}{% endif %}"
        "{{ '<|eot_id|>' }}" + LOOP + "{% if m.tool_calls %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' + m.tool_calls[0].function | tojson"
        " + '<|eom_id|>' }}{% else %}" + HEAD + "{% endif %}" + END + ASK_HEAD,
        terminator="<|eot_id|>",
        generation=HEADER,
        answer="Paris.<|eot_id|>",
        tokens=(*LLAMA, "<|eom_id|>"),
    ),
    "a date, asked for without asking": Form(
        source="{{ bos_token }}{% if messages[0].role != 'system' %}{{ '[SYSTEM]Today is ' + strftime_now('%Y-%m-%d') +"
        " '.[/SYSTEM]' }}{% endif %}{% for m in messages %}"
        "{% if m.role == 'user' %}{{ '[INST]' + m.content + '[/INST]' }}"
        "{% elif m.role == 'system' %}{{ '[SYSTEM]' + m.content + '[/SYSTEM]' }}{% else %}{{ m.content + eos_token }}"
        "{% endif %}{% endfor %}",
        terminator="</s>",
        generation="",
        answer="Paris.</s>",
        tokens=("[INST]", "[/INST]", "[SYSTEM]", "[/SYSTEM]"),
    ),
    "instructions with spaces": Form(
        source="{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}{% if m.role == 'user' %}"
        "{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content + eos_token + ' ' }}"
        "{% endif %}{% endfor %}",
        terminator="</s>",
        generation="",
        answer=" Paris.</s>",
        system=False,
    ),
    "the system text in the last question": Form(
        source="{{ bos_token }}{% set said = messages[0].content if messages[0].role == 'system' else '' %}"
        "{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}"
        "{{ '[INST]' + (said + '\\n\\n' if said and loop.revindex0 < 2 else '') + m.content + '[/INST]' }}"
        "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}",
        terminator="</s>",
        generation="",
        answer="Paris.</s>",
        tokens=("[INST]", "[/INST]"),
    ),
    "a system text inside the first question": Form(
        source="{% set said = '' %}{% if messages[0].role == 'system' %}"
        "{% set said = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' %}"
        "{% set messages = messages[1:] %}{% endif %}"
        "{% for m in messages %}{% if m.role == 'user' %}"
        "{{ bos_token + '[INST] ' + (said if loop.first else '') + m.content.strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
        terminator="</s>",
        generation="",
        answer=" Paris. </s>",
    ),
    "a role of another name, no system": Form(
        source="{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for m in messages %}"
        "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' +"
        " m.content | trim + '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<start_of_turn>model\\n' }}{% endif %}",
        terminator="<end_of_turn>",
        generation="<start_of_turn>model\n",
        answer="Paris.<end_of_turn>",
        system=False,
        tokens=("<start_of_turn>", "<end_of_turn>"),
    ),
    "a prefix of the whole, no terminator but the next role": Form(
        source="{{ '[gMASK]<sop>' }}{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ '<|user|>' }}{% endif %}",
        terminator="<|user|>",
        generation="<|assistant|>\n",
        answer="Paris.<|user|>",
        tokens=("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>"),
    ),
    "roles between marks, a date": Form(
        source="{% if messages[0].role != 'system' %}{{ '<|start_of_role|>system<|end_of_role|>Today: ' +"
        " strftime_now('%B %d, %Y') + '.<|end_of_text|>\\n' }}{% endif %}"
        "{% for m in messages %}{{ '<|start_of_role|>' +"
        " m.role + '<|end_of_role|>' + m.content + '<|end_of_text|>\\n' }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}",
        terminator="<|end_of_text|>",
        generation="<|start_of_role|>assistant<|end_of_role|>",
        answer="Paris.<|end_of_text|>",
        tokens=("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
    ),
    "channels, another end for the last": Form(
        source="{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|start|>assistant' }}{% if loop.last and"
        " m.thinking %}{{ '<|channel|>analysis<|message|>' + m.thinking + '<|end|><|start|>assistant' }}{% endif %}"
        "{{ '<|channel|>final<|message|>' + m.content }}"
        "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}{% else %}"
        "{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}",
        terminator="<|return|>",
        generation="<|start|>assistant",
        answer="<|channel|>final<|message|>Paris.<|return|>",
        thought="<|channel|>analysis<|message|>why<|end|><|start|>assistant",
        pieces=2,
        tokens=("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>"),
    ),
    "long names of tokens": Form(
        source="{{ bos_token }}{% for m in messages %}{{ '<|START_OF_TURN_TOKEN|>' + ('<|CHATBOT_TOKEN|>' if"
        " m.role == 'assistant' else '<|' + m.role | upper + '_TOKEN|>') + m.content.strip() +"
        " '<|END_OF_TURN_TOKEN|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}",
        terminator="<|END_OF_TURN_TOKEN|>",
        generation="<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        answer="Paris.<|END_OF_TURN_TOKEN|>",
        tokens=("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>"),
    ),
    "eos behind answers alone": Form(
        source="{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content }}"
        "{% if m.role == 'assistant' %}"
        "{{ eos_token + ('' if loop.last else '\\n') }}{% else %}{{ '\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}",
        terminator="</s>",
        generation="<|assistant|>\n",
        answer="Paris.</s>",
    ),
    "eos behind every turn": Form(
        source="{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + eos_token + '\\n' }}{% if loop.last and"
        " add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}{% endfor %}",
        terminator="</s>",
        generation="<|assistant|>\n",
        answer="Paris.</s>",
    ),
    "plain words, one line": Form(
        source="{% if messages[0].role == 'system' %}{{ messages[0].content + ' ' }}{% set messages = messages[1:] %}"
        "{% endif %}{% for m in messages %}{{ ('USER: ' if m.role == 'user' else 'ASSISTANT: ') + m.content +"
        " (' ' if m.role == 'user' else eos_token) }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
        terminator="</s>",
        generation="ASSISTANT:",
        answer=" Paris.</s>",
    ),
    "plain words, headlines": Form(
        source="{% if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}"
        "{% set messages = messages[1:] %}"
        "{% endif %}{% for m in messages %}{{ ('### Instruction:\\n' if m.role == 'user' else '### Response:\\n') +"
        " m.content + ('\\n\\n' if m.role == 'user' else '\\n### End\\n\\n') }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}",
        terminator="### End",
        generation="### Response:\n",
        answer="Paris.\n### End",
    ),
    "marks in brackets": Form(
        source="{% for m in messages %}"
        "{{ '[|' + m.role + '|]' + m.content + ('[|endofturn|]\\n' if m.role != 'user' else"
        " '\\n') }}{% endfor %}{% if add_generation_prompt %}{{ '[|assistant|]' }}{% endif %}",
        terminator="[|endofturn|]",
        generation="[|assistant|]",
        answer="Paris.[|endofturn|]",
        tokens=("[|assistant|]", "[|user|]", "[|system|]", "[|endofturn|]"),
    ),
    "the last answer stays open": Form(
        source="{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|bot|>' + m.content }}"
        "{% for call in m.tool_calls or [] %}{{ '<call>' + (call.function | tojson) + '</call>' }}{% endfor %}"
        "{% if not loop.last and messages[loop.index].role == 'user' %}{{ '<|bot_end|>' }}{% endif %}"
        "{% elif m.role == 'tool' %}{{ '<|result|>' + m.content }}"
        "{% else %}{{ '<|' + m.role + '|>' + m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|bot|>' }}{% endif %}",
        terminator="<|bot_end|>",
        generation="<|bot|>",
        answer="Paris.<|bot_end|>",
        ends_open=True,
        tokens=("<|bot|>", "<|user|>", "<|system|>", "<|bot_end|>", "<|result|>"),
    ),
    "the last answer stays open, the next role ends it": Form(
        source=LOOP + "{{ '<|' + m.role + '|>' + m.content }}" + END + "{% if add_generation_prompt %}"
        "{{ '<|assistant|>' }}{% endif %}",
        terminator="<|user|>",
        generation="<|assistant|>",
        answer="Paris.<|user|>",
        ends_open=True,
        tokens=("<|assistant|>", "<|user|>", "<|system|>"),
    ),
    "contents as parts": Form(
        source=LOOP
        + "{{ '<|im_start|>' + m.role + '\\n' }}{% for part in m.content %}{{ part['text'] }}{% endfor %}"
        + "{{ '<|im_end|>\\n' }}"
        + END
        + ASK,
        terminator="<|im_end|>",
        generation="<|im_start|>assistant\n",
        answer="Paris.<|im_end|>",
        tokens=IM,
    ),
    "answers marked for training": Form(
        source=LOOP
        + "{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>"
        "{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\\n' }}"
        "{% if loop.index > 90 %}{% break %}"
        "{% endif %}" + END + ASK,
        terminator="<|im_end|>",
        generation="<|im_start|>assistant\n",
        answer="Paris.<|im_end|>",
        tokens=IM,
    ),
}


MADE: dict[str, tuple[Any, Template]] = {}


IM_TOKENS = ("<|im_start|>", "<|im_end|>")


def made(name: str) -> tuple[Any, Template]:
    """A tokenizer with this form's template, and togi's template of it; cached, since trying it needs a process."""
    if name not in MADE:
        form = FORMS[name]
        base = byte_bpe(merges_lines="headers" in name, trim=not form.rstrip, adds_bos=form.rstrip)
        tokenizer = with_source(form.source, form.tokens, like=base, rstrip=form.rstrip)
        MADE[name] = tokenizer, own_template(tokenizer)
    return MADE[name]


def with_source(source: Any, tokens: tuple[str, ...] = (), *, like: Any = None, rstrip: bool = False) -> Any:
    """A tokenizer with one chat template or several, and extra special tokens."""
    base = (like or byte_bpe()).backend_tokenizer.to_str()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(base), bos_token="<s>", eos_token="</s>", chat_template=source
    )
    tokenizer.add_tokens([AddedToken(text, special=True, rstrip=rstrip, normalized=False) for text in tokens])
    return tokenizer


def scored(name: str, ids: tuple[int, ...], mask: tuple[bool, ...]) -> str:
    tokenizer, _ = made(name)
    return tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m], skip_special_tokens=False)
