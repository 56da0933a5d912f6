# SPDX-License-Identifier: Apache-2.0
"""The picture of the demo shows what an operator needs and fits the terminal."""

from __future__ import annotations

import dataclasses
import re

from fairlead.demo.screen import lines_to_type, render
from fairlead.model.views import EventView, ServerView, ServiceView

UP = ServerView(
    key="web/blue", pool="web", name="blue", address="127.0.0.1:9001", weight=2, effective_weight=2, backup=False,
    admin="ready", health="up", idle_reason=None, down_reason=None, detail="", since_at=0.0, drain_deadline_at=None,
    max_connections=0, active=3, connections_total=150, connect_failures_total=0, bytes_in_total=0, bytes_out_total=0,
)  # fmt: skip
DOWN = dataclasses.replace(
    UP, key="web/green", name="green", address="127.0.0.1:9002", effective_weight=0, health="down",
    down_reason="refused", idle_reason="down", active=0, connections_total=70,
)  # fmt: skip
WEB = ServiceView(
    name="web", listen=("127.0.0.1:8080",), protocol="tcp", pool="web", forwarding="proxy", engine="userspace",
    scheduler="maglev", state="degraded", mode="forward", active=3, queued=0, connections_total=220, bytes_in_total=0,
    bytes_out_total=0, rejected={"no_server": 0, "connect_failed": 4}, servers=(UP, DOWN),
)  # fmt: skip


def test_it_shows_service_servers_and_why_one_is_down() -> None:
    text = render([WEB], [], [], 120, colour=False)
    assert "web  degraded" in text
    assert "connect_failed 4" in text
    assert "no_server" not in text
    assert re.search(r"blue +127\.0\.0\.1:9001 +2 +up +ready +3 ", text)
    assert re.search(r"green +127\.0\.0\.1:9002 +0 of 2 +down \(refused\) +ready +0 ", text)


def test_rates_are_differences_over_time() -> None:
    then = dataclasses.replace(WEB, servers=(dataclasses.replace(UP, connections_total=100), DOWN))
    text = render([WEB], [], [], 120, colour=False, before=[then], elapsed_s=2.0)
    assert re.search(r"blue .* 25\.0 +150 +#{20}\n", text)
    assert re.search(r"green .* 0\.0 +70\n", text)


def test_a_restarted_counter_is_no_negative_rate() -> None:
    then = dataclasses.replace(WEB, servers=(dataclasses.replace(UP, connections_total=1000), DOWN))
    assert "-" not in render([WEB], [], [], 120, colour=False, before=[then], elapsed_s=1.0).split("blue")[1]


def test_lines_fit_the_terminal_but_hints_stay_whole() -> None:
    event = EventView(1, 0.0, "server_down", "web/green", "x" * 300)
    hint = "fairlead --socket /run/user/1000/fairlead/api.sock drain web/blue"
    text = render([WEB], [event], [hint], 40, colour=False)
    assert f"  {hint}\n" in text
    assert all(len(line) <= 40 for line in text.splitlines() if hint not in line)


def test_colour_only_when_wanted_and_outside_the_width() -> None:
    plain = render([WEB], [], [], 60, colour=False)
    painted = render([WEB], [], [], 60, colour=True)
    assert "\x1b" not in plain
    assert "\x1b[31m" in painted
    assert re.sub(r"\x1b\[\d+m", "", painted) == plain


def test_only_the_newest_events_are_shown() -> None:
    events = [EventView(n, float(n), "kind", f"subject{n}", "") for n in range(30)]
    text = render([], events, [], 80, colour=False)
    assert "subject29" in text
    assert "subject5" not in text


def test_lines_to_type_kill_who_lives_and_revive_who_does_not() -> None:
    lines = lines_to_type({"blue": 41}, {"blue": 9001, "green": 9002}, "web", program="fairlead", python="python3")
    assert lines[0].startswith("kill -9 41 ")
    assert lines[1].startswith("python3 -m fairlead.demo.servers green 9002 &")
    assert any(line.startswith("fairlead drain web/blue") for line in lines)
