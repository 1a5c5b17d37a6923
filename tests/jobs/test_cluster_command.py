"""`actlake cluster`: Ray with its token on. Tests of submission run on a cluster it started."""

import stat
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from actlake.jobs.cluster_command import main
from actlake.platform.cluster.errors import InvalidClusterConfig


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
