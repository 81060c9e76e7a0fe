"""A client of the CRI, as small as a kubelet can be: pods without a network of their own.

with open_cri(socket, images_socket) as cri:
    cri.pull("127.0.0.1:5000/name:tag", username="alice", password="open sesame")
    with cri.pod("pod") as pod, pod.container("127.0.0.1:5000/name:tag", ["sleep", "inf"]) as one:
        one.run("cat", "/etc/hostname")
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

import grpc

from tests.real.proto import cri_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from google.protobuf.message import Message

M = TypeVar("M", bound="Message")

LIMIT: Final = 240.0
"""Seconds that a call may take."""

VERSION: Final = "v1"


@contextmanager
def open_cri(socket: Path, images: Path | None = None, *, version: str = VERSION) -> Iterator[Cri]:
    """Give a client of containerd's CRI.

    Args:
        socket: containerd's.
        images: of the image service; containerd's by default.
        version: of the CRI.
    """
    options = [
        ("grpc.default_authority", "localhost"),
        ("grpc.max_receive_message_length", 16 << 20),
    ]
    with (
        grpc.insecure_channel(f"unix:{socket}", options=options) as runtime,
        grpc.insecure_channel(f"unix:{images or socket}", options=options) as image_service,
    ):
        yield Cri(runtime, image_service, version)


@dataclass(frozen=True)
class Cri:
    """Calls both services; a failure is a grpc.RpcError."""

    runtime: grpc.Channel
    images: grpc.Channel
    version: str

    def pull(self, image: str, **auth: str) -> str:
        """Pull an image, with the fields of an AuthConfig; return its ID."""
        request = pb.PullImageRequest(image=pb.ImageSpec(image=image))
        if auth:
            request.auth.CopyFrom(pb.AuthConfig(**auth))
        return self.call_images("PullImage", request, pb.PullImageResponse).image_ref

    def image(self, name: str) -> pb.Image | None:
        """Return what is known of an image."""
        request = pb.ImageStatusRequest(image=pb.ImageSpec(image=name))
        answer = self.call_images("ImageStatus", request, pb.ImageStatusResponse)
        return answer.image if answer.HasField("image") else None

    def list_images(self) -> list[pb.Image]:
        """Return all images."""
        answer = self.call_images("ListImages", pb.ListImagesRequest(), pb.ListImagesResponse)
        return list(answer.images)

    def remove_image(self, name: str) -> None:
        """Remove an image by any of its names."""
        request = pb.RemoveImageRequest(image=pb.ImageSpec(image=name))
        self.call_images("RemoveImage", request, pb.RemoveImageResponse)

    def images_usage(self) -> list[pb.FilesystemUsage]:
        """Return what images take of each file system."""
        request = pb.ImageFsInfoRequest()
        answer = self.call_images("ImageFsInfo", request, pb.ImageFsInfoResponse)
        return list(answer.image_filesystems)

    @contextmanager
    def pod(self, name: str) -> Iterator[Pod]:
        """Run a pod in the host's network until the block ends."""
        options = pb.NamespaceOption(network=pb.NODE)
        config = pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(name=name, uid=name, namespace="tests"),
            linux=pb.LinuxPodSandboxConfig(
                security_context=pb.LinuxSandboxSecurityContext(namespace_options=options)
            ),
        )
        started = self.call(
            "RunPodSandbox", pb.RunPodSandboxRequest(config=config), pb.RunPodSandboxResponse
        )
        identity = started.pod_sandbox_id
        try:
            yield Pod(self, identity, config)
        finally:
            stop = pb.StopPodSandboxRequest(pod_sandbox_id=identity)
            self.call("StopPodSandbox", stop, pb.StopPodSandboxResponse)
            remove = pb.RemovePodSandboxRequest(pod_sandbox_id=identity)
            self.call("RemovePodSandbox", remove, pb.RemovePodSandboxResponse)

    def call(self, method: str, request: Message, answer: type[M]) -> M:
        """Call the runtime service."""
        return _call(
            self.runtime, f"/runtime.{self.version}.RuntimeService/{method}", request, answer
        )

    def call_images(self, method: str, request: Message, answer: type[M]) -> M:
        """Call the image service."""
        return _call(self.images, f"/runtime.{self.version}.ImageService/{method}", request, answer)


def _call(channel: grpc.Channel, method: str, request: Message, answer: type[M]) -> M:
    begin: Any = channel.unary_unary(
        method,
        request_serializer=type(request).SerializeToString,
        response_deserializer=answer.FromString,
    )
    answered: M = begin(request, timeout=LIMIT, wait_for_ready=True)
    return answered


@dataclass(frozen=True)
class Pod:
    """A running pod."""

    cri: Cri
    identity: str
    config: pb.PodSandboxConfig
    _names: list[str] = field(default_factory=list)

    @contextmanager
    def container(self, image: str, command: Sequence[str]) -> Iterator[Container]:
        """Run a container in it until the block ends."""
        self._names.append(image)
        options = pb.NamespaceOption(network=pb.NODE)
        config = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name="container", attempt=len(self._names)),
            image=pb.ImageSpec(image=image),
            command=command,
            linux=pb.LinuxContainerConfig(
                security_context=pb.LinuxContainerSecurityContext(namespace_options=options)
            ),
        )
        create = pb.CreateContainerRequest(
            pod_sandbox_id=self.identity, config=config, sandbox_config=self.config
        )
        made = self.cri.call("CreateContainer", create, pb.CreateContainerResponse)
        container = Container(self.cri, made.container_id)
        try:
            start = pb.StartContainerRequest(container_id=container.identity)
            self.cri.call("StartContainer", start, pb.StartContainerResponse)
            yield container
        finally:
            stop = pb.StopContainerRequest(container_id=container.identity)
            self.cri.call("StopContainer", stop, pb.StopContainerResponse)
            remove = pb.RemoveContainerRequest(container_id=container.identity)
            self.cri.call("RemoveContainer", remove, pb.RemoveContainerResponse)


@dataclass(frozen=True)
class Container:
    """A running container."""

    cri: Cri
    identity: str

    def run(self, *command: str, status: int = 0) -> bytes:
        """Run a command in it that must end with `status`; return what it prints."""
        request = pb.ExecSyncRequest(container_id=self.identity, cmd=command, timeout=int(LIMIT))
        ended = self.cri.call("ExecSync", request, pb.ExecSyncResponse)
        assert ended.exit_code == status, f"{command}: {ended.exit_code}: {ended.stderr!r}"
        return ended.stdout

    def written(self) -> tuple[int, int]:
        """Return the bytes and inodes that it has written, as they were measured last."""
        request = pb.ContainerStatsRequest(container_id=self.identity)
        stats = self.cri.call("ContainerStats", request, pb.ContainerStatsResponse).stats
        layer = stats.writable_layer
        return layer.used_bytes.value, layer.inodes_used.value
