"""The history before it is rendered: ids renamed, turns left out, results hidden."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import message_call

from k2ref.conversation import history
from k2ref.conversation.events import Reply, ToolCall


def user(text="q"):
    return {"role": "user", "content": text}


def calling(*ids_and_names):
    return {"role": "assistant", "content": "",
            "tool_calls": [message_call(id, name, "{}") for id, name in ids_and_names]}


def result(id, content="r"):
    return {"role": "tool", "tool_call_id": id, "content": content}


def ids_of(messages):
    """The ids of calls and results, in order."""
    return [[call["id"] for call in message["tool_calls"]] if "tool_calls" in message
            else message["tool_call_id"] for message in messages if message["role"] != "user"]


def test_message_of_leaves_out_what_there_is_not():
    assert history.message_of(Reply("", "a")) == {"role": "assistant", "content": "a"}
    reply = Reply("t", "", [ToolCall("functions.f:0", "f", "{}")])
    assert history.message_of(reply) == {
        "role": "assistant", "content": "", "reasoning_content": "t",
        "tool_calls": [message_call("functions.f:0", "f", "{}")]}


def test_a_call_that_was_cut_off_says_so_in_the_history_and_to_no_template():
    reply = Reply("", "", [ToolCall("functions.f:0", "f", "{", complete=False)])
    message = history.message_of(reply)
    assert message["tool_calls"] == [{**message_call("functions.f:0", "f", "{"), "complete": False}]
    assert history.rename_calls([message]) == [message]
    assert [history.is_complete(call) for call in (
        message["tool_calls"][0], message_call("a", "f", "{}"), {"complete": None})] == [
        False, True, False]


def test_ids_are_counted_over_the_conversation():
    messages = [user(), calling(("call_x", "f"), ("call_y", "g")), result("call_y"),
                result("call_x"), user(), calling(("functions.f:0", "f")), result("functions.f:0")]
    assert ids_of(history.rename_calls(messages)) == [
        ["functions.f:0", "functions.g:1"], "functions.g:1", "functions.f:0",
        ["functions.f:2"], "functions.f:2"]


def test_ids_that_come_again_belong_to_the_last_turn_and_are_used_up_in_order():
    messages = [calling(("a", "f")), result("a"), calling(("a", "f"), ("a", "f")), result("a"),
                result("a"), result("a")]
    assert ids_of(history.rename_calls(messages)) == [
        ["functions.f:0"], "functions.f:0", ["functions.f:1", "functions.f:2"], "functions.f:1",
        "functions.f:2", "a"]


@pytest.mark.parametrize("message", [
    None, "text", {"role": "assistant", "tool_calls": "no list"},
    {"role": "assistant", "tool_calls": ["no dict"]}, {"role": "tool", "content": "no id"},
])
def test_what_is_malformed_is_left_to_the_template(message):
    assert history.rename_calls([message]) == [message]


def test_the_name_in_an_id_has_an_end():
    messages = [{"role": "assistant", "tool_calls": [
        {"id": "x", "function": {"name": "f" * 10**6, "arguments": "{}"}}]}]
    renamed = history.rename_calls(messages)
    assert renamed[0]["tool_calls"][0]["id"] == f"functions.{'f' * 100}:0"
    assert renamed[0]["tool_calls"][0]["function"] == messages[0]["tool_calls"][0]["function"]


def test_a_call_without_a_name_keeps_its_id_and_counts():
    messages = [calling(("3", ""), ("4", "f")), result("3"), result("4")]
    assert ids_of(history.rename_calls(messages)) == [["3", "functions.f:1"], "3", "functions.f:1"]


names = st.sampled_from(["f", "g", "a-b.c", ""])
turns = st.lists(st.lists(st.tuples(st.sampled_from("xyz"), names), min_size=1, max_size=3),
                 max_size=4)


def conversation(turns):
    messages = [user()]
    for calls in turns:
        messages += [calling(*calls), *(result(id) for id, _ in calls)]
    return messages


@given(turns)
def test_renaming_twice_is_renaming_once_and_changes_no_message(turns):
    messages = conversation(turns)
    before = copy.deepcopy(messages)
    renamed = history.rename_calls(messages)
    assert history.rename_calls(renamed) == renamed and messages == before
    calls = [call for message in renamed for call in message.get("tool_calls", [])]
    for i, call in enumerate(calls):
        name = call["function"]["name"]
        assert not name or call["id"] == f"functions.{name}:{i}"
    # Each result goes with a call of its own turn.
    for message, then in zip(renamed, renamed[1:], strict=False):
        if "tool_calls" in message:
            assert then["tool_call_id"] in [call["id"] for call in message["tool_calls"]]


@given(turns, st.integers(1, 5))
def test_keep_turns_keeps_the_last_ones_whole(turns, n):
    messages = [*conversation(turns), {"role": "assistant", "content": "done"}, user("next")]
    kept = history.keep_turns(messages, n)
    expected = [user(), *conversation(turns[-n:])[1:], *messages[-2:]]
    assert kept == expected


def test_keep_turns_refuses_to_keep_none():
    with pytest.raises(ValueError, match="at least 1 turn to keep, found 0"):
        history.keep_turns([], 0)


@given(turns, st.integers(0, 20))
def test_hide_results_hides_the_first_and_keeps_the_rest(turns, n):
    messages = conversation(turns)
    shown = history.hide_results(messages, n)
    results = [message for message in shown if message["role"] == "tool"]
    hidden = [message["content"] == history.HIDDEN for message in results]
    assert hidden == [i < n for i in range(len(results))]
    assert [m for m in shown if m["role"] != "tool"] == [m for m in messages if m["role"] != "tool"]
    assert [m["role"] for m in shown] == [m["role"] for m in messages]


def test_unanswered_is_the_question_without_a_final_answer():
    done = {"role": "assistant", "content": "a"}
    assert history.unanswered([]) is None
    assert history.unanswered([user()]) == 0
    assert history.unanswered([user(), done]) is None
    assert history.unanswered([user(), done, user(), calling(("a", "f")), result("a")]) == 2
