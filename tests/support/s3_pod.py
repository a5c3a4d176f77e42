"""An S3 server in a cluster: moto from this environment, in a pod with the transformer's image."""

import re
import shutil
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

import boto3
from packaging.requirements import Requirement

from tests.support.real_cluster import ClusterNamespace

PORT = 9000
#: moto's server and what it needs.
_REQUIREMENTS = ("moto[s3]", "flask-cors")
_MANIFEST = f"""
apiVersion: v1
kind: Pod
metadata:
  name: s3
  labels:
    app: s3
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {{fsGroup: 1000}}
  containers:
    - name: moto
      image: placement-transformer:0.1.0
      env:
        - name: PYTHONPATH
          value: /packages/all
        # The server's host name is no bucket.
        - name: S3_IGNORE_SUBDOMAIN_BUCKETNAME
          value: "true"
      command:
        - sh
        - -c
        - until [ -d /packages/complete ]; do sleep 0.2; done; exec python -m moto.server -H 0.0.0.0 -p {PORT}
      readinessProbe:
        tcpSocket:
          port: {PORT}
        periodSeconds: 1
      volumeMounts:
        - name: packages
          mountPath: /packages
  volumes:
    - name: packages
      emptyDir: {{}}
---
apiVersion: v1
kind: Service
metadata:
  name: s3
spec:
  selector:
    app: s3
  ports:
    - port: {PORT}
"""


def start_s3(namespace: ClusterNamespace, directory: Path) -> str:
    """Start a server, and return its URL for this machine; pods use `endpoint`."""
    packages = directory / "packages"
    for one in _with_dependencies():
        _copy(one, packages)
    namespace.kubectl("apply", "-f", "-", stdin=_MANIFEST)
    running = "--for=jsonpath={.status.phase}=Running"
    namespace.kubectl("wait", running, "pod/s3", "--timeout=120s")
    namespace.kubectl("cp", str(packages), "s3:/packages/all")
    namespace.kubectl("exec", "s3", "--", "mkdir", "/packages/complete")
    namespace.kubectl("wait", "--for=condition=Ready", "pod/s3", "--timeout=120s")
    return f"http://{namespace.read('service', 's3')['spec']['clusterIP']}:{PORT}"


def endpoint(namespace: ClusterNamespace) -> str:
    """Return host and port of the server for pods."""
    return f"s3.{namespace.name}:{PORT}"


def upload(url: str, bucket: str, directory: Path, prefix: str) -> None:
    """Copy the files of a directory to a prefix, and create the bucket."""
    client = boto3.client("s3", endpoint_url=url)
    client.create_bucket(Bucket=bucket)
    for file in directory.iterdir():
        client.upload_file(str(file), bucket, f"{prefix}/{file.name}")


def _with_dependencies() -> Iterator[Distribution]:
    """Yield the installed distributions that the server needs."""
    found: set[str] = set()
    waiting = [Requirement(text) for text in _REQUIREMENTS]
    while waiting:
        requirement = waiting.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name in found:
            continue
        found.add(name)
        one = distribution(name)
        yield one
        extras = requirement.extras or {""}
        waiting.extend(
            needed
            for needed in map(Requirement, one.requires or ())
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras)
        )


def _copy(one: Distribution, packages: Path) -> None:
    for file in one.files or ():
        if ".." not in file.parts and "__pycache__" not in file.parts:
            copy = packages / file
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file.locate(), copy)
