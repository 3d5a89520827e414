from __future__ import annotations

import json

import pytest

from tvm_mobilenet.facts import BoardFacts, CpuFacts, host_facts, throttling

SAID = {
    "cpu": "Cortex-A72",
    "machine": "aarch64",
    "features": ["asimd", "crc32"],
    "cores": 4,
    "cpus": [
        {"cpu": 0, "max_mhz": 1500, "cur_mhz": 600.5, "governor": "ondemand", "capacity": 1024},
        {"cpu": 1, "max_mhz": 1500, "cur_mhz": 1500, "governor": "ondemand", "capacity": 1024},
    ],
    "temperature_c": 48.2,
    "memory_total_mib": 3792,
    "memory_free_mib": 3001,
    "kernel": "6.1.21-v8+",
    "glibc": "2.31",
    "tvm": "0.27.0",
    "emulated": False,
}


def test_what_an_agent_says_is_read():
    facts = BoardFacts.of(json.loads(json.dumps(SAID)))
    assert facts.clock_mhz == 1500
    assert facts.governors == ("ondemand",)
    assert facts.cpus[0] == CpuFacts(
        cpu=0, max_mhz=1500, cur_mhz=600.5, governor="ondemand", capacity=1024
    )
    host = facts.host_facts()
    assert (host.cpu, host.machine, host.cpus) == ("Cortex-A72", "aarch64", 2)
    assert host.system == "Linux 6.1.21-v8+"
    assert json.loads(json.dumps(facts.to_dict()))["features"] == ["asimd", "crc32"]


@pytest.mark.parametrize(
    "said",
    [
        {},
        {name: None for name in SAID},
        {name: "nonsense" for name in SAID},
        {name: [1, {}] for name in SAID},
        {**SAID, "cpus": [{}, 7, {"cur_mhz": True}], "a later field": 1},
    ],
    ids=["nothing", "nulls", "words", "lists", "of a later version"],
)
def test_what_an_agent_says_wrongly_counts_as_not_known(said):
    facts = BoardFacts.of(said)
    assert facts.clock_mhz is None
    assert facts.host_facts().cpu
    json.dumps(facts.to_dict(), allow_nan=False)
    assert throttling(facts, facts) == []


def test_only_the_processors_that_computed_count():
    def at(*clocks: float) -> BoardFacts:
        cpus = tuple(CpuFacts(cpu=index, cur_mhz=mhz) for index, mhz in enumerate(clocks))
        return BoardFacts(cpus=cpus)

    before, after = at(1000, 2000), at(600, 2000)
    assert throttling(before, after, cpus=(1,)) == []
    assert len(throttling(before, after, cpus=(0, 1))) == 1
    assert throttling(before, at(960, 1950)) == []


def test_this_machine_is_described():
    facts = host_facts()
    assert facts.cpus >= 1
    assert facts.load_average is not None
    assert facts.to_dict()["machine"] == facts.machine
