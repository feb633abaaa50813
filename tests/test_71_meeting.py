"""A process that cannot meet the others says so in one line that names what to check."""

import os
import re
import socket

import pytest
from helpers import free_port, together

from nanogpt.common import UserError
from nanogpt.ranks import meet


def alone(rank, world, own_rank, size, port, more, said):
    """In a process of its own, which torch leaves its threads to."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} | more
    with pytest.raises(UserError) as refused:
        meet(own_rank, size, "gloo", patience=0.3)
    assert re.search(said, str(refused.value)), str(refused.value)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500


@pytest.mark.parametrize("rank, size, more, said", [
    (1, 2, {}, r"rank 1 of 2 cannot meet the others at 127.0.0.1:\d+ \(.*refused.*\): check "
               r"MASTER_ADDR \(rank 0's machine\), MASTER_PORT"),  # nobody listens
    (0, 2, {}, "1/2 clients joined.*and that all 2 processes are started"),
    (1, 2, {"MASTER_ADDR": "no.such.host.invalid"}, "cannot meet the others at no.such.host"),
    (0, 1, {"MASTER_ADDR": "no.such.host.invalid"}, "cannot meet the others at no.such.host"),
    (0, 1, {"GLOO_SOCKET_IFNAME": "nosuch"}, r"GLOO_SOCKET_IFNAME \(nosuch\)")])
def test_it_gives_up(rank, size, more, said):
    together(alone, 1, rank, size, free_port(), more, said, timeout=30)


def test_another_program_has_the_port():
    """Two runs on one machine: the second is refused."""
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        together(alone, 1, 0, 2, other.getsockname()[1], {}, "address already in use", timeout=30)
