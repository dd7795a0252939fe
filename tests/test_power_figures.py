"""Power figures: by every round's own rule, from real and from made-up files, whatever is in them."""

from __future__ import annotations

import json
import tempfile
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.power.figures import PowerError, PowerFigure, power_figure
from orchestrator.power.spl import SplError, read_spl
from tests.made_power import BEGIN, END, WINDOW_S, every_second, performance, reading

TIME_BUDGET_S = 20

SAMPLES = Path(__file__).resolve().parents[2] / "shared" / "samples"
KRAI = SAMPLES / "v1.0/open/Krai/results/xavier-power.0-fan.cool-tflite-v2.4.1-ruy"
EDGES = reading(BEGIN, 9000) + every_second([100, 200, 300]) + reading(END, 9000)


def test_the_published_sample_has_the_figure_that_its_rounds_checker_computes() -> None:
    folder = KRAI / "efficientnet-lite0-quantized" / "offline" / "performance"
    if not folder.is_dir():
        pytest.skip("the published samples lie beside the project's checkout only")
    # check_power_dir of v1.0.1 and of r1.1 over these files: 20.938133333333344 W, 0.33310636384269976 J.
    offline, stream = power_figure("v1.0", "Offline", folder), power_figure("v1.1", "SingleStream", folder)
    assert offline.value == pytest.approx(20.938133333333344, rel=1e-14)
    assert (offline.unit, offline.samples, offline.window_s) == ("W", 600, 600.025)
    assert stream.value == pytest.approx(0.33310636384269976, rel=1e-14)
    assert (stream.unit, stream.average_w) == ("J/sample", offline.value)


@pytest.mark.parametrize("scenario", ["Server", "Offline", "server", "interactive"])
@pytest.mark.parametrize("round_name", ["v1.0", "v1.1", "v2.1", "v6.1"])
def test_watts_are_the_mean_of_the_readings_strictly_inside_of_the_window(
    tmp_path: Path, round_name: str, scenario: str
) -> None:
    found = power_figure(round_name, scenario, performance(tmp_path, "Server", EDGES))
    assert found == PowerFigure(200.0, "W", 200.0, 3, WINDOW_S)


@pytest.mark.parametrize(
    ("round_name", "logged", "scenario", "value", "unit"),
    [
        # energy of the window, 200 W x 600.008 s, by what each round's checker takes for the queries
        ("v1.0", "SingleStream", "SingleStream", 200 / 50.0, "J/sample"),
        ("v1.1", "MultiStream", "MultiStream", 200 * WINDOW_S / (270336 * 4), "J/sample"),
        ("v2.0", "SingleStream", "SingleStream", 200 * WINDOW_S / 30000, "J/query"),
        ("v2.1", "SingleStream", "MultiStream", 200 * WINDOW_S * 8 / 30000, "J/query"),
        ("v3.0", "MultiStream", "MultiStream", 200 * WINDOW_S * 1000 / 30000, "mJ/query"),
        ("v6.1", "SingleStream", "SingleStream", 200 * WINDOW_S * 1000 / 30000, "mJ/query"),
        ("v6.1", "SingleStream", "MultiStream", 200 * WINDOW_S * 8000 / 30000, "mJ/query"),
        ("v6.1", "MultiStream", "multistream", 200 * WINDOW_S * 1000 / 30000, "mJ/query"),
    ],
)
def test_streams_have_energy_by_the_rounds_own_count(
    tmp_path: Path, round_name: str, logged: str, scenario: str, value: float, unit: str
) -> None:
    folder = performance(
        tmp_path, logged, EDGES, generated_query_count=270336, generated_samples_per_query=4,
        result_qps_with_loadgen_overhead=50.0, result_query_count=30000,
    )  # fmt: skip
    found = power_figure(round_name, scenario, folder)
    assert found.value == pytest.approx(value, rel=1e-12)
    assert (found.unit, found.average_w, found.samples) == (unit, 200.0, 3)


def test_v1_shifts_both_clocks_by_their_hosts_time_zones_and_later_rounds_do_not(tmp_path: Path) -> None:
    hours = timedelta(hours=3)
    spl = every_second([100, 200, 300], BEGIN + hours)
    folder = performance(tmp_path, "Offline", spl, zones=(-3600, -4 * 3600.0))
    assert power_figure("v1.1", "Offline", folder).samples == 2  # the first is at the window's very begin
    with pytest.raises(PowerError, match="no line of 3 lies between power_begin.*must agree"):
        power_figure("v2.0", "Offline", folder)


def test_readings_of_nothing_count_up_to_v3_0_only(tmp_path: Path) -> None:
    folder = performance(tmp_path, "Offline", every_second([300, 0, -3]))
    assert power_figure("v3.0", "Offline", folder).value == 99
    assert power_figure("v3.1", "Offline", folder).value == 300


@pytest.mark.parametrize("line", ["\n", "# a remark\n", "Watts\n"])
def test_a_line_that_is_no_reading_stops_the_checkers_up_to_v3_1(tmp_path: Path, line: str) -> None:
    folder = performance(tmp_path, "Offline", EDGES + line)
    with pytest.raises(PowerError, match=r"spl\.txt:6: has no time and stops the checker"):
        power_figure("v3.1", "Offline", folder)
    assert power_figure("v4.0", "Offline", folder).value == 200


def test_watts_that_are_no_number_matter_inside_of_the_window_only(tmp_path: Path) -> None:
    outside = performance(tmp_path / "outside", "Offline", EDGES + reading(END, "many"))
    assert power_figure("v1.0", "Offline", outside).value == 200
    inside = performance(tmp_path / "inside", "Offline", every_second([1, "nan"]))
    with pytest.raises(PowerError, match=r"spl\.txt:2: has no watts"):
        power_figure("v6.1", "Offline", inside)


def test_what_is_missing_is_told_with_its_file_and_no_traceback(tmp_path: Path) -> None:
    def fails(round_name: str, scenario: str, folder: Path, words: str) -> None:
        with pytest.raises(PowerError, match=words):
            power_figure(round_name, scenario, folder)

    good = performance(tmp_path / "good", "SingleStream", EDGES)
    fails("v0.7", "Offline", good, "no power measurement")
    fails("newest", "Offline", good, "is not a round")
    fails("v6.1", "Stream", good, "'Stream' is no scenario")
    fails("v6.1", "SingleStream", good, "result_query_count is not said")
    fails("v1.0", "SingleStream", good, "result_qps_with_loadgen_overhead is not said")
    fails("v6.1", "Offline", tmp_path / "nowhere", "no LoadGen logs here")
    none = performance(tmp_path / "none", "SingleStream", EDGES, result_query_count=0)
    fails("v6.1", "SingleStream", none, "result_query_count is 0")
    (good / "run_1" / "spl.txt").unlink()
    fails("v6.1", "Offline", good, r"spl\.txt: No such file")
    (good / "run_1" / "spl.txt").mkdir()
    fails("v6.1", "Offline", good, r"spl\.txt: Is a directory")
    (good / "power" / "server.json").write_text("[]")
    fails("v1.0", "Offline", good, r"server\.json is no JSON object")
    (good / "power" / "client.json").write_text('{"timezone": "UTC"}')
    fails("v1.0", "Offline", good, r"client\.json: timezone is no number of seconds")
    (good / "power" / "client.json").unlink()
    fails("v1.0", "Offline", good, r"client\.json: No such file")


@settings(max_examples=30, deadline=None)
@given(
    spl=st.binary(max_size=300) | st.text("Time,03-8201:5.Wats\n", max_size=200).map(str.encode),
    zone=st.none() | st.floats() | st.integers() | st.text(max_size=3),
    round_name=st.sampled_from(["v1.0", "v2.0", "v6.1"]),
    scenario=st.sampled_from(["Offline", "SingleStream", "MultiStream"]),
)
def test_any_bytes_give_a_figure_or_a_sentence(
    spl: bytes, zone: object, round_name: str, scenario: str
) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = performance(
            Path(place), scenario, EDGES.encode() + spl, zones=(zone, zone), result_query_count=30000,
            result_qps_with_loadgen_overhead=50.0,
        )  # fmt: skip
        try:
            assert power_figure(round_name, scenario, folder).value > 0
        except PowerError as error:
            assert str(error)


# spl.txt


def test_a_reading_has_its_time_watts_and_mark_whatever_channels_follow(tmp_path: Path) -> None:
    line = reading(BEGIN, 2884).rstrip("\n") + ",Ch1,Watts,976.0,Volts,210.39,Amps,4.715,PF,0.98\r\n"
    (tmp_path / "spl.txt").write_text(line + "Time,03-08-2021 00:00:06.1,Watts,7", newline="")
    first, cut = read_spl(tmp_path / "spl.txt")
    assert (first.line, first.timed, first.at, first.watts) == (1, True, BEGIN, 2884.0)
    assert first.mark == "2021-03-08_00-00-00_testing"
    assert (cut.line, cut.watts, cut.mark) == (2, 7.0, None)


def test_a_line_without_end_is_one_reading_and_not_the_memorys_end(tmp_path: Path) -> None:
    (tmp_path / "spl.txt").write_bytes(b"Time" + b",x" * 200_000 + b"\n" + reading(BEGIN, 5).encode())
    absurd, good = read_spl(tmp_path / "spl.txt")
    assert (absurd.at, absurd.watts, good.line, good.watts) == (None, None, 2, 5.0)


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_can_be_read_line_by_line(raw: bytes) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "spl.txt"
        path.write_bytes(raw)
        lines = [found.line for found in read_spl(path)]
    assert lines == list(range(1, raw.count(b"\n") + (not raw.endswith(b"\n") and raw != b"") + 1))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SplError, match=r"spl\.txt: No such file"):
        list(read_spl(tmp_path / "spl.txt"))


def test_the_json_of_the_hosts_may_be_of_any_size(tmp_path: Path) -> None:
    folder = performance(tmp_path, "Offline", EDGES)
    deep = "[" * 100_000
    for name, text in (("client.json", deep), ("server.json", json.dumps({"timezone": 1e300}))):
        (folder / "power" / name).write_text(text)
        with pytest.raises(PowerError, match=name):
            power_figure("v1.0", "Offline", folder)
        (folder / "power" / name).write_text('{"timezone": 0}')
