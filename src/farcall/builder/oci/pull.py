"""An image from a registry into the content store."""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO

from farcall.builder.oci.download import discard, download
from farcall.builder.oci.endpoint import DIRECTLY, Access
from farcall.builder.oci.image import Pulled, find
from farcall.builder.oci.layers import LayerStack
from farcall.builder.oci.manifest import Descriptor
from farcall.builder.oci.platform import Platform, this_machine
from farcall.builder.oci.reference import DOCKER_IO, parse
from farcall.builder.oci.registry import Repository
from farcall.content import Lease
from farcall.content.attempts import PATIENT, StoppedError, Timing
from farcall.errors import ConnectionError, TimeoutError

_DOWNLOADS = 4  # layers at once
_REPORT_SECONDS = 0.1  # between two words on one layer

_MIRROR = "The setting `registry` (FARCALL_REGISTRY) names what stands in for docker.io: a mirror or a cache"

Progress = Callable[[str, int, int], None]


def pull(
    lease: Lease,
    reference: str,
    *,
    platform: Platform | None = None,
    credentials: Mapping[str, str] | None = None,
    access: Access = DIRECTLY,
    progress: Progress = lambda digest, done, total: None,
    timing: Timing = PATIENT,
) -> Pulled:
    """Fetch the image `reference` for `platform` (this machine's when None) into the lease's store.

    Layers are downloaded several at a time, verified, and unpacked in their order; those that another image brought
    are not fetched again. What a pull that fails has fetched is what the next one goes on with. `credentials` are the
    values of a Secret; without them the user's own logins count. `progress` gets a layer's digest and its bytes: those
    that are there, and all; it is called by one thread at a time. Memory stays flat.

    Blocks. Raises what `Repository` does and, of the image, NotFoundError (no such platform: which there are),
    UnimplementedError (a form that farcall cannot read), ContentError, CorruptedError (layers that are not what the
    image says); ResourceExhaustedError for a full disk.
    """
    wanted = parse(reference)
    stop = threading.Event()
    with Repository(wanted, access=access, secret=credentials, timing=timing, stop=stop) as repository:
        try:
            image = find(repository, wanted.version, platform or this_machine())
            stack = LayerStack(lease, image.configuration.diff_ids, repository.name)
            _Download(repository, stack, image.layers, progress, stop).run()
        except (ConnectionError, TimeoutError) as error:
            mirror = f". {_MIRROR}" if wanted.registry == DOCKER_IO else ""
            raise type(error)(f"{repository.name} could not be fetched: {error}{mirror}") from error
        return Pulled(stack.tree_id, image.configuration.config, image.digest)


class _Download:
    """The layers of one image on their way: fetched by several threads, unpacked by the one that runs this."""

    def __init__(
        self,
        repository: Repository,
        stack: LayerStack,
        layers: tuple[Descriptor, ...],
        progress: Progress,
        stop: threading.Event,
    ) -> None:
        self._repository = repository
        self._stack = stack
        self._layers = layers
        self._progress = progress
        self._stop = stop
        self._folder = stack.lease.store.root / "downloads"
        self._lock = threading.Lock()
        self._told: dict[str, float] = {}  # when `progress` last heard of a layer
        self._error: BaseException | None = None  # the first; what others raise is that they were stopped

    def run(self) -> None:
        """Returns when all layers are in the stack."""
        missing = self._layers[self._stack.height :]
        if not missing:
            return
        with ThreadPoolExecutor(_DOWNLOADS, "farcall-layer") as pool:
            downloads: list[Future[FileIO]] = []
            try:
                downloads += [pool.submit(self._fetch, layer) for layer in missing]
                for future in downloads:
                    with future.result() as file:
                        self._stack.add(file)
                        discard(file)
            except StoppedError:
                assert self._error is not None
                raise self._error from None
            finally:
                self._stop.set()
                for future in downloads:
                    if not future.cancel() and future.exception() is None:
                        future.result().close()

    def _fetch(self, layer: Descriptor) -> FileIO:
        try:
            return download(self._repository, layer, self._folder, lambda done: self._tell(layer, done))
        except BaseException as error:
            with self._lock:
                if self._error is None and not self._stop.is_set():
                    self._error = error
                    self._stop.set()
            raise

    def _tell(self, layer: Descriptor, done: int) -> None:
        now = self._repository.transport.timing.clock()
        with self._lock:
            if done < layer.size and now - self._told.get(layer.digest, 0.0) < _REPORT_SECONDS:
                return
            self._told[layer.digest] = now
            self._progress(layer.digest, done, layer.size)
