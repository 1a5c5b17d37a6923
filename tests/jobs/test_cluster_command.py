"""`actlake cluster`: Ray with its token on. Tests of submission run on a cluster it started."""

import socket
import stat
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from actlake.jobs.cluster_command import main
from actlake.platform.cluster import starting
from actlake.platform.cluster.errors import ClusterUnreachable, InvalidClusterConfig


def test_the_token_is_made_once_for_its_owner_alone(tmp_path, capsys):
    token = tmp_path / "new" / "token"

    for _ in range(2):
        assert main(["env", "--token-file", str(token)]) == 0

    first, second = capsys.readouterr().out.strip().split("\n")[:2], token.read_text()
    assert first == ["export RAY_AUTH_MODE=token", f"export RAY_AUTH_TOKEN_PATH={token}"]
    assert len(second) == 64
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    main(["env", "--token-file", str(token)])
    assert token.read_text() == second


@pytest.mark.parametrize(
    ("mode", "words", "error"),
    [(0o644, "secret", "can be read by others.*\nhint: chmod 600"), (0o600, "", "is empty\nhint")],
)
def test_a_token_that_others_may_read_or_that_is_none_is_refused(tmp_path, mode, words, error):
    token = tmp_path / "token"
    token.write_text(words)
    token.chmod(mode)

    with pytest.raises(InvalidClusterConfig, match=error):
        main(["head", "--token-file", str(token)])


def test_what_would_be_run_is_shown_with_the_dashboard_on_loopback(tmp_path, capsys):
    token = tmp_path / "token"

    main(["head", "--token-file", str(token), "--show", "--", "--port=7000", "--num-cpus=3"])
    main(["node", "10.0.0.5:7000", "--token-file", str(token), "--show"])

    head, node = capsys.readouterr().out.strip().split("\n")
    assert head.startswith(f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={token} ")
    assert "--head" in head
    assert "--dashboard-host=127.0.0.1" in head
    assert "--port=7000" in head
    assert "--port=6379" not in head
    assert head.endswith("--num-cpus=3")
    assert "--address=10.0.0.5:7000" in node
    assert token.read_text() not in head + node


@pytest.mark.ray
def test_nobody_without_the_token_gets_in(ray_head):
    def status(**headers):
        request = Request(f"{ray_head.dashboard}/api/jobs/", headers=headers)
        try:
            return urlopen(request, timeout=30).status
        except HTTPError as error:
            return error.code

    assert status() == 401
    assert status(Authorization="Bearer " + "0" * 64) in (401, 403)
    assert status(Authorization=f"Bearer {ray_head.token}") == 200


@pytest.fixture
def taken_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


@pytest.mark.parametrize("written", ["--{}={}", "--{} {}"])
@pytest.mark.parametrize("which", ["port", "dashboard-port", "dashboard-agent-listen-port"])
def test_a_second_head_at_a_taken_port_is_refused_before_ray_starts(
    tmp_path, monkeypatch, taken_port, which, written
):
    monkeypatch.setattr(starting, "run", lambda *_: pytest.fail("Ray was started"))
    free = {"port": 0, "dashboard-port": 0, "dashboard-agent-listen-port": 0}
    free |= {which: taken_port}
    more = [word for item in free.items() for word in written.format(*item).split()]

    with pytest.raises(
        InvalidClusterConfig, match=rf"listens at port {taken_port} .*--{which}\)(.|\n)*hint: .ray"
    ):
        main(["head", "--token-file", str(tmp_path / "token"), "--", *more])


def test_a_second_node_on_one_machine_would_offer_it_twice_and_is_refused(
    tmp_path, monkeypatch, taken_port
):
    monkeypatch.setattr(starting, "run", lambda *_: pytest.fail("Ray was started"))
    agent = f"--dashboard-agent-listen-port={taken_port}"
    token = str(tmp_path / "token")

    with pytest.raises(InvalidClusterConfig, match=rf"listens at port {taken_port}"):
        main(["node", f"127.0.0.1:{taken_port}", "--token-file", token, "--", agent])


@pytest.mark.parametrize(
    ("address", "error", "words"),
    [
        ("10.0.0.5", InvalidClusterConfig, "it is HOST:PORT"),
        ("127.0.0.1:x", InvalidClusterConfig, "it is HOST:PORT"),
        ("127.0.0.1:99999", ClusterUnreachable, "Nobody answers"),
        ("127.0.0.1:9", ClusterUnreachable, "Nobody answers at 127.0.0.1:9: .*\nhint: does"),
    ],
)
def test_a_head_that_does_not_answer_is_said_at_once_and_not_tried_for_ever(
    tmp_path, monkeypatch, address, error, words
):
    monkeypatch.setattr(starting, "run", lambda *_: pytest.fail("Ray was started"))

    with pytest.raises(error, match=words):
        main(["node", address, "--token-file", str(tmp_path / "token")])


def test_what_is_said_next_names_the_ports_that_were_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(starting, "run", lambda *_: 0)
    monkeypatch.setattr(starting, "check_ports_are_free", lambda _: None)

    main(
        ["head", "--token-file", str(tmp_path / "t"), "--", "--port=6380", "--dashboard-port=8266"]
    )

    said = capsys.readouterr().out
    assert "actlake cluster node THIS_MACHINE:6380" in said
    assert "http://127.0.0.1:8266" in said
    assert "8265" not in said
