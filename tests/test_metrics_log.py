"""metrics.jsonl: written line by line, read even where the last line was cut off."""

import json

import pytest

from tcl_jax.errors import InputError
from tcl_jax.training.log import METRICS, MetricsLog, read


def write(folder, records, last_step=0):
    with MetricsLog(folder, last_step) as log:
        for step, values in records:
            log.write("epoch", step, values)


def test_records_are_read_as_written(tmp_path):
    write(tmp_path, [(1, {"loss": 0.1, "lambda": {"act1": 4.0}}), (2, {"loss": 1 / 3})])
    assert read(tmp_path / METRICS) == [
        {"kind": "epoch", "step": 1, "loss": 0.1, "lambda": {"act1": 4.0}},
        {"kind": "epoch", "step": 2, "loss": 1 / 3},
    ]


def test_each_record_is_on_disk_at_once(tmp_path):
    with MetricsLog(tmp_path, 0) as log:
        log.write("step", 50, {"loss": 1.0})
        assert len(read(tmp_path / METRICS)) == 1


def test_a_resumed_log_drops_what_came_after_its_checkpoint(tmp_path):
    write(tmp_path, [(s, {"loss": float(s)}) for s in (10, 20, 30)])
    write(tmp_path, [(30, {"loss": 31.0})], last_step=20)
    assert [(r["step"], r["loss"]) for r in read(tmp_path / METRICS)] == [
        (10, 10.0),
        (20, 20.0),
        (30, 31.0),
    ]
    assert [p.name for p in tmp_path.glob("metrics*")] == [METRICS]


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_torn_last_line_is_left_out(tmp_path, cut):
    write(tmp_path, [(1, {"loss": 1.0}), (2, {"loss": 2.0})])
    path = tmp_path / METRICS
    path.write_bytes(path.read_bytes()[: -1 - cut])
    assert [r["step"] for r in read(path)] == [1]
    write(tmp_path, [(2, {"loss": 3.0})], last_step=1)
    assert [(r["step"], r["loss"]) for r in read(path)] == [(1, 1.0), (2, 3.0)]


@pytest.mark.parametrize("damaged", [b'{"step": 2, "lo', b"\xff\x00", b"3", b"{}", b""])
def test_a_damaged_line_before_the_last_is_named(tmp_path, damaged):
    write(tmp_path, [(s, {"loss": 1.0}) for s in (1, 2, 3)])
    path = tmp_path / METRICS
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], damaged, lines[2], b""]))
    with pytest.raises(InputError, match="is damaged at line 2"):
        read(path)
    with pytest.raises(InputError, match="is damaged at line 2"):
        MetricsLog(tmp_path, 3)
    assert len(path.read_bytes().splitlines()) == 3, "the damaged log was overwritten"


def test_a_missing_log(tmp_path):
    with pytest.raises(InputError, match="holds no finished run"):
        read(tmp_path / METRICS)


def test_numbers_are_json(tmp_path):
    write(tmp_path, [(1, {"loss": 0.25})])
    assert json.loads((tmp_path / METRICS).read_text())["loss"] == 0.25
