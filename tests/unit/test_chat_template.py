from __future__ import annotations

import re
import threading
import time
from typing import Any

import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from deepseek_r1.core.errors import RequestError, TokenizerError
from deepseek_r1.models.text.chat_template import ChatTemplate, opens_thinking

CHATML = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}
{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}
{% endif %}
{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{{- "Today Date: " + date_string + "\n\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' ~ message['role'] ~ '<|end_header_id|>\n\n' ~ message['content'] | trim ~ '<|eot_id|>' }}
{%- endfor %}
{%- if tools is not none %}{{- tools | tojson(indent=4) }}{%- endif %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}"""

MISTRAL = """{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{% else %}{% generation %}{{ message['content'] + eos_token}}{% endgeneration %}{% endif %}
{% endfor %}"""

DEEPSEEK_R1 = """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{%- set ns = namespace(is_first=false, system_prompt='') %}
{%- for message in messages %}{%- if message['role'] == 'system' %}
{%- set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}
{{- bos_token }}{{ ns.system_prompt }}
{%- for message in messages %}
{%- if message['role'] == 'user' %}{{'<｜User｜>' + message['content']}}{%- endif %}
{%- if message['role'] == 'assistant' and message['content'] is not none %}
{%- set content = message['content'] %}
{%- if '</think>' in content %}{%- set content = content.split('</think>')[-1] %}{%- endif %}
{{- '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{%- endif %}
{%- endfor -%}
{% if add_generation_prompt %}{{'<｜Assistant｜><think>\n'}}{% endif %}"""

QWEN3 = """{%- macro block(role, text) -%}{{ '<|im_start|>' ~ role ~ '\n' ~ text ~ '<|im_end|>\n' }}{%- endmacro -%}
{%- if tools %}{{- '<|im_start|>system\n' }}
{%- for tool in tools %}{{- "\n" }}{{- tool | tojson }}{%- endfor %}{{- '<|im_end|>\n' }}{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string %}
        {%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}{%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'skip' %}{%- continue %}{%- endif %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "assistant" %}
        {%- set reasoning = message.reasoning_content if message.reasoning_content is string else '' %}
        {%- if not reasoning and '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning) %}
            {{- block('assistant', '<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + content) }}
        {%- else %}{{- block('assistant', content) }}{%- endif %}
    {%- else %}{{- block(message.role, content) }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}"""

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
USER = {"role": "user", "content": "1 < 2 & 'x'? 你好 👋"}
TALK = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nhello"},
    USER,
]
SYSTEM = [{"role": "system", "content": " Be brief. "}, *TALK]
TOOL = {"type": "function", "function": {"name": "f", "description": "a <b> & 'c' 中"}}


@pytest.fixture(scope="module")
def oracle() -> PreTrainedTokenizerFast:
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"<s>": 0, "</s>": 1}, []))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **TOKENS)


@pytest.mark.parametrize(
    ("source", "messages", "variables"),
    [
        (CHATML, TALK, {}),
        (CHATML, SYSTEM, {"add_generation_prompt": False}),
        (LLAMA3, SYSTEM, {}),
        (LLAMA3, TALK, {"tools": [TOOL]}),
        (LLAMA3, TALK, {"date_string": "26 Jul 2024"}),
        (MISTRAL, TALK, {}),
        (DEEPSEEK_R1, SYSTEM, {}),
        (DEEPSEEK_R1, TALK, {"add_generation_prompt": False}),
        (QWEN3, SYSTEM, {}),
        (QWEN3, SYSTEM, {"enable_thinking": False}),
        (QWEN3, SYSTEM, {"enable_thinking": True, "tools": [TOOL]}),
        (QWEN3, [*SYSTEM, {"role": "skip", "content": "x"}, {"role": "assistant", "content": None}], {}),
        (QWEN3, [USER, {"role": "assistant", "content": "a", "reasoning_content": "r"}], {}),
    ],
)
def test_renders_as_transformers_does(
    oracle: PreTrainedTokenizerFast, source: str, messages: list[dict[str, Any]], variables: dict[str, Any]
) -> None:
    options = {"add_generation_prompt": True, **variables}
    expected = oracle.apply_chat_template(messages, chat_template=source, tokenize=False, **options)
    assert ChatTemplate(source, special_tokens=TOKENS).render(messages, **options) == expected
    assert expected  # the oracle did render something


def test_the_default_adds_the_generation_prompt() -> None:
    prompt = ChatTemplate(CHATML).render([USER])
    assert prompt.endswith("<|im_start|>assistant\n")


def test_a_template_that_rejects_the_conversation() -> None:
    with pytest.raises(RequestError, match="roles must alternate") as caught:
        ChatTemplate(MISTRAL, special_tokens=TOKENS).render([USER, USER])
    assert (caught.value.code, caught.value.param) == ("chat_template_rejected", "messages")


@pytest.mark.parametrize("messages", [[{"role": "user"}], [{"role": "user", "content": None}], [{}]])
def test_messages_that_the_template_cannot_read(messages: list[dict[str, Any]]) -> None:
    with pytest.raises(RequestError, match="cannot render these messages") as caught:
        ChatTemplate(CHATML).render(messages)
    assert caught.value.code == "chat_template_error"


def test_objects_with_methods_never_reach_a_template() -> None:
    with pytest.raises(RequestError, match=r"type [Ll]ock"):
        ChatTemplate("{{ messages }}").render([{"content": threading.Lock()}])


@pytest.mark.parametrize(
    "source",
    [
        "{% for %}",
        "{{ 'a' ",
        "{% endif %}",
        "{{ x | nosuchfilter }}",
        "{% frobnicate %}",
        "a" * (1 << 20) + "b",
        "{{ " + "(" * 3000 + ")" * 3000 + " }}",
        "{% if x %}" * 300,
    ],
)
def test_a_template_that_does_not_compile(source: str) -> None:
    with pytest.raises(TokenizerError, match="chat template"):
        ChatTemplate(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''['__class__']['__mro__'] }}",
        "{{ (''|attr('__class__')).__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'a': 1}) }}",
        "{{ messages.__class__.__subclasses__() }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ raise_exception.__globals__ }}",
        "{{ dict.__globals__ }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ namespace(__class__=1) }}",
        "{{ self._TemplateReference__context.environment }}",
        "{{ charge_step() }}",
        "{% include 'x' %}",
        "{% import 'os' as os %}",
        "{{ lipsum(n=1000000) }}",
    ],
)
def test_the_sandbox_holds(source: str) -> None:
    messages = [{"role": "user", "content": "x"}]
    template = ChatTemplate(source)
    try:
        text = template.render(messages)
    except (TokenizerError, RequestError):
        text = ""
    assert messages == [{"role": "user", "content": "x"}]
    assert not re.search(r"class|object|module|<", text)


BOMBS = {
    "range": "{% for i in range(10**9) %}x{% endfor %}",
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops that filter": "{% for i in range(99999) %}{{ range(99999)|map('string')|list|length }}{% endfor %}",
    "recursive macro": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "endless recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "output": "{% for i in range(99999) %}" + "x" * 1000 + "{% endfor %}",
    "output in a block": "{% set a %}{% for i in range(99999) %}" + "x" * 1000 + "{% endfor %}{% endset %}",
    "output of a variable": "{% set a = 'x' * 1000000 %}"
    "{% set b %}{% for i in range(999) %}{{ a }}{% endfor %}{% endset %}",
    "constant": "{{ 'x' * 10**10 }}",
    "constant the other way": "{{ 10**10 * 'x' }}",
    "list": "{{ [1] * 10**10 }}",
    "shared list": "{% set s = 'x' * 10000000 %}{{ ([s] * 99999)|string|length }}",
    "shared list as json": "{% set s = 'x' * 10000000 %}{{ ([s] * 99999)|tojson|length }}",
    "shared list joined": "{% set s = 'x' * 10000000 %}{{ ([s] * 99999)|join|length }}",
    "shared list joined by a method": "{% set s = 'x' * 10000000 %}{{ ''.join([s] * 99999)|length }}",
    "shared list written": "{% set s = 'x' * 10000000 %}{{ [s] * 99999 }}",
    "doubling +": "{% set n = namespace(s='x') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "doubling ~": "{% set n = namespace(s='x') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "doubling replace": "{% set s = 'x' * 1000000 %}{{ s.replace('x', s)|length }}",
    "doubling filter": "{% set s = 'x' * 1000000 %}{{ (s|replace('x', s))|length }}",
    "doubling format": "{% set s = 'x' * 9000000 %}{{ ('{0}' * 9999).format(s)|length }}",
    "big allocation again and again": "{% for i in range(99999) %}{% set a = 'x' * 16000000 %}{% endfor %}",
    "power": "{{ 9**(9**9) }}",
    "powers": "{% set n = namespace(i=99) %}{% for i in range(99) %}{% set n.i = n.i * n.i %}{% endfor %}",
    "width": "{{ 'x'.center(10**10) }}",
    "width filter": "{{ 'x'|center(10**10) }}",
    "width format": "{{ '%10000000000d' % 1 }}",
    "width star": "{{ '%*d' % (10**10, 1) }}",
    "width braces": "{{ '{:>10000000000}'.format(1) }}",
    "width braces with a brace": "{{ '{0[}]:>10000000000}'.format({'}': 1}) }}",
    "width precision": "{{ '%.10000000000f' % 1 }}",
    "width braces by name": "{{ '{a:>{b}}'.format_map({'a': 1, 'b': 10**10}) }}",
    "width braces argument": "{{ '{:>{}}'.format(1, 10**10) }}",
    "tabs": "{{ ('\t' * 10000000).expandtabs(99999)|length }}",
    "batch": "{{ [1]|batch(10**10, 0)|list }}",
    "slice": "{{ [1]|slice(10**10)|list }}",
    "round": "{{ 1|round(10**10) }}",
    "json indent": "{{ messages|tojson(indent=10**10) }}",
    "strftime": "{{ strftime_now('%1000000000d') }}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_stopped_quickly(name: str) -> None:
    start = time.monotonic()
    template = ChatTemplate(BOMBS[name])
    with pytest.raises((TokenizerError, RequestError)) as caught:
        template.render([USER])
    assert "template" in str(caught.value)
    assert time.monotonic() - start < 8


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ '**%s** 123456' % 1234567 }}", "**1234567** 123456"),
        ("{{ '{{\"a\": {}}} {:>4}|{x!r}'.format(1234567, 1, x='y') }}", "{\"a\": 1234567}    1|'y'"),
        ("{{ 'a*b'.replace('*', '-') ~ none ~ 1.5 ~ missing }}", "a-bNone1.5"),
        (
            "{{ [1, 2] + [3] }} {{ 2 ** 10 }} {{ 7 % 4 }} {{ 'ab' * 2 }} {{ '%d' | format(3) }}",
            "[1, 2, 3] 1024 3 abab 3",
        ),
        (
            "{{ ', '.join(['a', 'b']) }} {{ ['a', 'b'] | join('-') }} {{ 1234567 | default(7654321) }}",
            "a, b a-b 1234567",
        ),
    ],
)
def test_ordinary_expressions_are_untouched(source: str, expected: str) -> None:
    assert ChatTemplate(source).render([]) == expected


def test_a_long_conversation_is_no_bomb() -> None:
    messages = [{"role": ("user", "assistant")[i % 2], "content": "word " * 200} for i in range(2000)]
    start = time.monotonic()
    text = ChatTemplate(QWEN3).render(messages)
    assert text.count("word ") == 400_000
    assert time.monotonic() - start < 3


def test_renders_in_several_threads_do_not_share_a_budget() -> None:
    template = ChatTemplate(CHATML)
    expected = template.render(TALK)
    results: list[str] = []
    threads = [threading.Thread(target=lambda: results.append(template.render(TALK))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 8


def test_opens_thinking() -> None:
    render = ChatTemplate(DEEPSEEK_R1, special_tokens=TOKENS).render
    assert opens_thinking(render(TALK))
    assert not opens_thinking(render(TALK, add_generation_prompt=False))
    assert not opens_thinking(ChatTemplate(QWEN3).render(TALK, enable_thinking=False))
