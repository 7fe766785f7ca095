"""What models write and what it means: each case is a reply, well formed or not, and its parts.

The faulty ones are those that the parsers of vLLM, SGLang and llama.cpp test, or that their users
reported; `ELSEWHERE` says where. `docs/parsing.md` shows them all (scripts/docs/make_parsing.py).
"""

from k2ref.conversation.events import Reply, ToolCall

# A call that is cut off is equal to the whole one (`complete` is not compared): CUT_OFF says which
# cases have some, by their place among the calls.

SECTION, SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL, CALL_END = "<|tool_call_begin|>", "<|tool_call_end|>"
ARGUMENT = "<|tool_call_argument_begin|>"
ONE, ONE_END = "<|tool_call_section_begin|>", "<|tool_call_section_end|>"
MARKERS = [SECTION, SECTION_END, CALL, ARGUMENT, CALL_END, "<think>", "</think>"]


def call(id, arguments="{}", end=CALL_END):
    return f"{CALL}{id}{ARGUMENT}{arguments}{end}"


def wrap(*calls):
    return SECTION + "".join(calls) + SECTION_END


F = "functions.f:0"
FIRST, SECOND = ToolCall(F, "f", '{"a": 1}'), ToolCall("functions.g:1", "g", "{}")
ONE_CALL = call(F, '{"a": 1}')
BOTH = ONE_CALL + call("functions.g:1")

TAUGHT = {
    "nothing": ("", Reply()),
    "content only": ("Hi.", Reply("", "Hi.")),
    "thinking and content": ("<think>Hm.</think>Hi.", Reply("Hm.", "Hi.")),
    "empty thinking": ("<think></think>Hi.", Reply("", "Hi.")),
    "one call": (f"<think>t</think>{wrap(ONE_CALL)}", Reply("t", "", [FIRST])),
    "content before a call": (f"Wait. {wrap(ONE_CALL)}", Reply("", "Wait. ", [FIRST])),
    "several calls": (wrap(BOTH), Reply("", "", [FIRST, SECOND])),
    "two sections": (wrap(ONE_CALL) + wrap(call("functions.g:1")), Reply("", "", [FIRST, SECOND])),
    "everything ends with the turn": (f"Hi.<|im_end|>more{BOTH}", Reply("", "Hi.")),
    "a forgotten end": ("Hi.<|im_user|>user<|im_middle|>No.", Reply("", "Hi.")),
    "other ends": ("Hi.[EOT]x", Reply("", "Hi.")),
    "white space is kept": ("<think>\n t \n</think>\n\n a \n", Reply("\n t \n", "\n\n a \n")),
    "blanks before thinking": (" \n<think>t</think>a", Reply("t", "a")),
    "blanks before content": (" \n a", Reply("", " \n a")),
    "only blanks": (" \n", Reply("", " \n")),
}

IDS = {
    "no prefix": (call("search:2"), Reply("", "", [ToolCall("search:2", "search", "{}")])),
    "dots and dashes": (call("functions.mcp.a-b.c:10"),
                        Reply("", "", [ToolCall("functions.mcp.a-b.c:10", "mcp.a-b.c", "{}")])),
    "a function called functions": (
        call("functions.functions.x:0"),
        Reply("", "", [ToolCall("functions.functions.x:0", "functions.x", "{}")])),
    "a name that ends in digits": (
        call("functions.step2:0"), Reply("", "", [ToolCall("functions.step2:0", "step2", "{}")])),
    "no index": (call("functions.f"), Reply("", "", [ToolCall("functions.f", "f", "{}")])),
    "white space around everything": (
        f"{SECTION}\n{CALL} {F}\n{ARGUMENT} {{\"a\": 1}} \n{CALL_END}\n{SECTION_END}",
        Reply("", "", [FIRST])),
    "a bare counter without tools": (call("3"), Reply("", "", [ToolCall("3", "", "{}")])),
}

ARGUMENTS = {
    "no arguments": (call(F, "{}"), Reply("", "", [ToolCall(F, "f", "{}")])),
    "empty arguments": (call(F, ""), Reply("", "", [ToolCall(F, "f", "")])),
    "blank arguments": (call(F, " \n"), Reply("", "", [ToolCall(F, "f", "")])),
    "broken JSON": (wrap(call(F, '{"a": ')), Reply("", "", [ToolCall(F, "f", '{"a":')])),
    "nested, Unicode, several lines": (
        call(F, '{"x": {"y": [1,\n "城 👍 \\u00e9"]}}'),
        Reply("", "", [ToolCall(F, "f", '{"x": {"y": [1,\n "城 👍 \\u00e9"]}}')])),
    "angle brackets": (call(F, '{"h": "<b>|></b><|"}'),
                       Reply("", "", [ToolCall(F, "f", '{"h": "<b>|></b><|"}')])),
    "thinking markers in arguments": (
        call(F, '{"h": "<think></think>"}'),
        Reply("", "", [ToolCall(F, "f", '{"h": "<think></think>"}')])),
    "singular markers in arguments": (
        call(F, f'{{"h": "{ONE}{ONE_END}"}}'),
        Reply("", "", [ToolCall(F, "f", f'{{"h": "{ONE}{ONE_END}"}}')])),
}

FAULTS = {
    "a section inside thinking": (f"<think>t{wrap(ONE_CALL)}", Reply("t", "", [FIRST])),
    "a call inside thinking": (f"<think>t{ONE_CALL}", Reply("t", "", [FIRST])),
    "content after a call inside thinking": (f"<think>t{ONE_CALL}a", Reply("t", "a", [FIRST])),
    "thinking ends after the call": (f"<think>t{ONE_CALL}</think>a", Reply("t", "a", [FIRST])),
    "thinking ends after the section": (
        f"<think>t{wrap(ONE_CALL)}</think>a", Reply("t", "a", [FIRST])),
    "calls without a section": (f"a{BOTH}", Reply("", "a", [FIRST, SECOND])),
    "blanks between bare calls": (f"{ONE_CALL}\n{call('functions.g:1')}\n",
                                  Reply("", "", [FIRST, SECOND])),
    "content after a bare call": (f"{ONE_CALL}\nDone.", Reply("", "Done.", [FIRST])),
    "content after a section": (f"{wrap(ONE_CALL)} Done.", Reply("", " Done.", [FIRST])),
    "singular section markers": (f"a{ONE}\n{BOTH}\n{ONE_END}", Reply("", "a", [FIRST, SECOND])),
    "a singular section in thinking": (
        f"<think>t{ONE}{ONE_CALL}{ONE_END}", Reply("t", "", [FIRST])),
    "a mixed section": (f"{ONE}{ONE_CALL}{SECTION_END}a", Reply("", "a", [FIRST])),
    "noise in a section": (
        f"a{SECTION} noise {ONE_CALL} noise {SECTION_END}", Reply("", "a", [FIRST])),
    "an empty section": (f"a{SECTION}{SECTION_END}b", Reply("", "ab")),
    "an empty singular section": (f"a{ONE} {ONE_END}b", Reply("", "ab")),
    "a section without end": (f"{SECTION}{ONE_CALL}", Reply("", "", [FIRST])),
    "a section and nothing": (f"a{SECTION}", Reply("", "a")),
    "a call without end": (f"{SECTION}{call(F, '{', '')}", Reply("", "", [ToolCall(F, "f", "{")])),
    "a call that the section ends": (f"{SECTION}{call(F, '{', '')}{SECTION_END}a",
                                     Reply("", "a", [ToolCall(F, "f", "{")])),
    "a call that the turn ends": (
        call(F, "{", "<|im_end|>"), Reply("", "", [ToolCall(F, "f", "{")])),
    "a call that the end of sequence ends": (
        call(F, '{"a": 1', "[EOS]"), Reply("", "", [ToolCall(F, "f", '{"a": 1')])),
    "a call that the next turn ends": (
        call(F, '{"a": 1}', "<|im_user|>user"), Reply("", "", [FIRST])),
    "arguments that never began": (
        SECTION + call(F, "", ""), Reply("", "", [ToolCall(F, "f", "")])),
    "a call that looks whole": (SECTION + call(F, '{"a": 1}', ""), Reply("", "", [FIRST])),
    "only the first is whole": (f"{SECTION}{ONE_CALL}{call('functions.g:1', '{}', '')}",
                                Reply("", "", [FIRST, SECOND])),
    "a call that the next one ends": (call(F, '{"a": 1}', "") + call("functions.g:1"),
                                      Reply("", "", [FIRST, SECOND])),
    "calls inside thinking without an end": (
        "<think>t" + call(F, '{"a": 1}', "") + call("functions.g:1", "{}", ""),
        Reply("t", "", [FIRST, SECOND])),
    "a second begin before the arguments": (f"{CALL}functions.h:0{BOTH}",
                                            Reply("", "", [FIRST, SECOND])),
    "an id and nothing": (f"a{SECTION}{CALL}{F}", Reply("", "a")),
    "an id without arguments": (f"{SECTION}{CALL}{F}{CALL_END}{ONE_CALL}", Reply("", "", [FIRST])),
    "an id that the section ends": (f"{SECTION}{CALL}{F}{SECTION_END}a", Reply("", "a")),
    "a singular section that is none": (f"<think>t</think>a {ONE} b", Reply("t", "a b")),
    "stray ends": (f"a{SECTION_END}b{CALL_END}c{ARGUMENT}d", Reply("", "abcd")),
    "a stray singular end": (f"a{ONE_END}b", Reply("", "ab")),
    "thinking without end": ("<think>t", Reply("t", "")),
    "part of a marker at the end": ("a<|tool_call", Reply("", "a<|tool_call")),
    "part of a marker within": ("a<|tool_<b", Reply("", "a<|tool_<b")),
}

# In a style whose replies begin with <think>, which the model may forget.
FORGOTTEN = {
    "the end of thinking without its begin": ("Hm.</think>Hi.", Reply("Hm.", "Hi.")),
    "nothing before the end of thinking": ("</think>Hi.", Reply("", "Hi.")),
    "white space is thinking, too": (" \n Hm.\n</think>\nHi.", Reply(" \n Hm.\n", "\nHi.")),
    "thinking that ends and calls": (f"Hm.</think>{wrap(ONE_CALL)}", Reply("Hm.", "", [FIRST])),
    "an answer without thinking": ("Hi.", Reply("", "Hi.")),
    "an answer without thinking, and a call": (f"Hi.{wrap(ONE_CALL)}", Reply("", "Hi.", [FIRST])),
    "an answer that the turn ends": ("Hi.<|im_end|></think>", Reply("", "Hi.")),
    "thinking as it should be": ("<think>Hm.</think>Hi.", Reply("Hm.", "Hi.")),
}

CUT_OFF = {
    "a call without end": {0}, "a call that the section ends": {0},
    "a call that the turn ends": {0}, "a call that the next one ends": {0},
    "calls inside thinking without an end": {0, 1},
    "a call that the end of sequence ends": {0}, "arguments that never began": {0},
    "a call that looks whole": {0}, "a call that the next turn ends": {0},
    "only the first is whole": {1},
}

CASES = {**TAUGHT, **IDS, **ARGUMENTS, **FAULTS}  # of whatever style

# Where others test the same: names of tests in tests/tool_parsers/test_kimi_k2_tool_parser.py and
# tests/reasoning/test_kimi_k2_reasoning_parser.py (vLLM), of tests in
# test/registered/function_call/test_kimik2_detector.py (SGLang), comments in the part of
# tests/test-chat.cpp about Kimi-K2-Thinking (llama.cpp), else the thread that reports it.
ELSEWHERE = {
    "content only": "vLLM `test_no_tools`, SGLang `test_no_tool_call`, llama.cpp \"basic content "
                    "only\"",
    "the end of thinking without its begin": "vLLM#32216, whose parser takes it so",
    "thinking and content": "vLLM `test_extract_reasoning_with_think_tags`",
    "empty thinking": "vLLM `test_extract_reasoning_empty_thinking`",
    "one call": "SGLang `test_normal_reasoning_with_think_end`, llama.cpp \"single tool call with "
                "reasoning\"",
    "content before a call": "vLLM `single_tool_call`, SGLang `test_normal_text_before_tool_call`, "
                             "llama.cpp \"tool call with content\"",
    "several calls": "vLLM `parallel_tool_calls`, SGLang `test_multiple_tool_calls`, llama.cpp "
                     "\"multiple tool calls\"",
    "no prefix": "vLLM `no_functions_prefix`",
    "dots and dashes": "SGLang `test_hyphenated_name_non_streaming`",
    "no index": "vLLM `test_invalid_funcall_id_skipped`, which drops the call",
    "a bare counter without tools": "vLLM `test_bare_counter` and its neighbours (vllm#46127)",
    "no arguments": "vLLM `empty_arguments`, llama.cpp \"tool call with empty arguments\"",
    "broken JSON": "vLLM `test_invalid_json_still_extracted`",
    "nested, Unicode, several lines": "vLLM `multiline_json`, llama.cpp \"Python tool with "
                                      "multiline code\"",
    "angle brackets": "vLLM `angle_brackets_in_json`",
    "a section inside thinking": "vLLM `test_extract_reasoning_tool_section_ends_reasoning` "
                                 "(vllm#33646), SGLang "
                                 "`test_tool_call_inside_think_without_close_tag`",
    "a call inside thinking": "llama.cpp \"call inside thinking block and without section "
                              "markers\"",
    "calls inside thinking without an end": "the same",
    "calls without a section": "llama.cpp \"real life test\", vllm#32216",
    "content after a section": "vLLM `test_content_after_tool_section`, which drops it",
    "singular section markers": "ggml-org/llama.cpp#17376",
    "noise in a section": "vLLM `test_noise_between_markers_suppressed`",
    "an empty section": "vLLM `test_empty_tool_section`",
    "a call without end": "vLLM `test_truncated_tool_call_no_end_marker`, llama.cpp \"partial tool "
                          "call\"; agents that run it: ahwurm/localharness#77, "
                          "2389-research/tracker#507",
    "stray ends": "SGLang `test_no_leak_in_non_tool_text`, `test_no_leak_of_argument_begin_token`",
    "part of a marker at the end": "SGLang "
                                   "`test_streaming_trailing_literal_left_angle_is_not_dropped`",
}
