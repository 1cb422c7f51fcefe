"""Files of requests: the forms that are known, and what is said of the others."""

from __future__ import annotations

import gzip
import json
from random import Random

import pytest

from skyserve.errors import UsageError
from skyserve.sim.arrivals import Flows, Poisson, Recorded
from skyserve.sim.request_files import read_requests

AZURE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.6805900,396,109
"""


@pytest.fixture
def write(tmp_path):
    """Writes a file and returns its path as a command line has it."""

    def _write(text: str, name: str = "requests.csv") -> str:
        path = tmp_path / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return str(path)

    return _write


def _first(requests, count: int):
    instants, prompt, answer = next(requests.batches(Random(0)))
    return instants[:count], prompt[:count], answer[:count]


def test_a_rate():
    requests = read_requests("poisson:2.5", rate_scale=2.0)
    assert isinstance(requests, Poisson)
    assert (requests.mean_rate, requests.text) == (5.0, "Poisson, 5 requests/s")


@pytest.mark.parametrize("name", ["azure.csv", "azure.csv.gz"])
def test_the_form_of_azure(write, name):
    requests = read_requests(write(AZURE, name))
    assert _first(requests, 2) == ([0.0, pytest.approx(4.0)], [374.0, 396.0], [44.0, 109.0])
    assert requests.mean_rate == pytest.approx(0.25)
    assert requests.text.startswith(f"{name}, 2 requests, 0.25 a second")


def test_the_form_of_mooncake(write):
    rows = [{"timestamp": 500 * i, "input_length": 10 + i, "output_length": 5, "hash_ids": [1]} for i in range(3)]
    requests = read_requests(write("\n".join(map(json.dumps, rows)), "x.jsonl"), rate_scale=0.5)
    assert _first(requests, 3) == ([0.0, 1.0, 2.0], [10.0, 11.0, 12.0], [5.0] * 3)


def test_seconds_alone(write):
    requests = read_requests(write("# arrivals\n10\n\n12.5\n11\n", "arrivals.txt"))
    assert isinstance(requests, Recorded)
    instants, prompt, _ = _first(requests, 3)
    assert instants == [0.0, 1.0, 2.5]
    assert all(length > 0 for length in prompt)


def test_seconds_with_tokens_under_other_names(write):
    requests = read_requests(write("Timestamp,Request tokens,Response tokens\n5,472,18\n45,1087,230\n"))
    assert _first(requests, 2) == ([0.0, 40.0], [472.0, 1087.0], [18.0, 230.0])


def test_rates_by_window(write):
    requests = read_requests(write("t,rate,active_clients\n0,2,1\n600,0,0\n1200,4,2\n"), rate_scale=10.0)
    assert isinstance(requests, Flows)
    assert (requests.window_s, requests.mean_rate) == (600.0, pytest.approx(20.0))
    instants = [at for batch, _ in zip(requests.batches(Random(0)), range(3), strict=False) for at in batch[0]]
    assert not [at for at in instants if 600 <= at < 1200]


def test_rates_by_client_with_a_window_left_out(write):
    rows = ("0,0,1.5,8.5,Weibull,0.375,0.4", "1,0,1,2,Gamma,0.25,1", "0,600,1,1,,,", "1,1800,3,,,,")
    text = "\n".join(("client,t,rate,cv,pattern,p1,p2", *rows))
    requests = read_requests(write(text, "servegen_clients.csv"))
    assert [len(window) for window in requests.windows] == [2, 1, 0, 1]
    weibull, gamma = requests.windows[0]
    assert (weibull.pattern, weibull.shape, gamma.shape) == ("weibull", 0.375, 0.25)
    assert requests.windows[1][0].shape == 1.0


def test_lengths_stand_beside_the_rates(write):
    document = {"7": {"0": {"input_tokens": "{100: 0.5, 300: 0.5}", "output_tokens": "{9: 1e0}"}}}
    write(json.dumps(document), "servegen_x_top3_lengths.json.gz")
    requests = read_requests(write("t,rate\n0,5\n600,5\n", "servegen_x_total_rate.csv.gz"))
    assert set(requests.lengths.prompt) == {100.0, 300.0}
    assert set(requests.lengths.answer) == {9.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", " is empty"),
        ("# nothing\n\n", " is empty"),
        (AZURE + "2023-11-16 18:15:55,abc,1\n", ":4: `contexttokens` must be a number of at least 0"),
        (
            AZURE + "2023-11-16 18:15:55,-1,1\n",
            ":4: `contexttokens` must be a number of at least 0, not '-1'",
        ),
        (
            AZURE + "yesterday,1,1\n",
            ":4: 'yesterday' is neither a date with a time nor a number of seconds",
        ),
        (AZURE + "1,1\n", ":4: 2 columns where the heading has 3"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", " has no requests"),
        ("a,b\n1,2\n", ":1: no request trace begins with 'a,b'"),
        ("1\n2\nx\n", ":3: an instant in seconds is wanted, not 'x'"),
        ("1\nnan\n", ":2: an instant in seconds is wanted, not 'nan'"),
        (
            '{"timestamp": 1, "input_length": 1, "output_length": 1}\n{"a"\n',
            ":2: this is not a JSON object",
        ),
        ('{"a": 1}\n', ":1: the JSON object has no `timestamp`"),
        ('{"timestamp": 1}\n', ":1: the JSON object has no `input_length` and `output_length`"),
        ('{"timestamp": true, "input_length": []}\n', ":1: `input_length` must be a number of at least 0"),
        ("t,rate\n0,0\n", " has no window with a rate above 0"),
        ("t,rate\n0,fast\n", ":2: `rate` must be a number of at least 0, not 'fast'"),
        ("t,rate,pattern\n0,1,Zipf\n", ":2: `pattern` must be Gamma, Weibull or Exponential, not 'Zipf'"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(write, text, message):
    with pytest.raises(UsageError) as caught:
        read_requests(write(text))
    assert f"requests.csv{message}" in caught.value.message


@pytest.mark.parametrize("asked", ["poisson:", "poisson:fast", "poisson:0", "poisson:-1", "poisson:inf", "poisson:nan"])
def test_a_rate_is_a_number_above_nothing(asked):
    with pytest.raises(UsageError, match="names no rate above 0"):
        read_requests(asked)


def test_other_refusals(write, tmp_path):
    with pytest.raises(UsageError, match="there is no file"):
        read_requests(str(tmp_path / "nowhere.csv"))
    with pytest.raises(UsageError, match="cannot be multiplied by 0"):
        read_requests("poisson:1", rate_scale=0.0)
    (tmp_path / "torn.gz").write_bytes(gzip.compress(AZURE.encode())[:-12])
    with pytest.raises(UsageError, match=r"torn\.gz cannot be read"):
        read_requests(str(tmp_path / "torn.gz"))
    (tmp_path / "picture").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(UsageError, match="is not text: byte 0 is not UTF-8"):
        read_requests(str(tmp_path / "picture"))
    write("[]", "x_lengths.json")
    with pytest.raises(UsageError, match="is not a file of lengths"):
        read_requests(write("t,rate\n0,5\n", "x_clients.csv"))
