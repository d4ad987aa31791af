"""What waits for the VAE and the dataset: motion cameras, latent shape and latent stores."""

from typing import Any

from lerobot_motion.checkpoints.card_tables import DatasetFacts
from lerobot_motion.models.latent_codec import read_latent_spec
from lerobot_motion.steps import EMPTY_CAMERA
from lerobot_motion.training.train_run import TrainRun

AUTO_LATENTS = "auto"
# In this order: draccus tries one type after the other, and makes a str of anything.
OneOrSeveral = list[str] | str
_ABOUT_EMPTY_CAMERAS = (
    f" A view of the motion head whose camera is not there keeps its place by an empty one: name "
    f"{EMPTY_CAMERA}0 in its stead, and pass --policy.empty_cameras=1."
)


def one_or_several(name: str, value: OneOrSeveral | None) -> OneOrSeveral | None:
    """Bring a setting that names one thing or several to one form.

    Args:
        name: Name of the setting, for errors.
        value: A name, names in a list, or names separated by commas, in brackets or not.

    Returns:
        The name if there is one, otherwise the list; None if it is None.

    Raises:
        ValueError: If there is none, one is empty, or one is there twice.
    """
    if value is None:
        return None
    # With --policy.path LeRobot 0.6.1 reads flags as JSON: [a,b] is none, and comes as it is.
    given = (
        value.removeprefix("[").removesuffix("]").split(",") if isinstance(value, str) else value
    )
    names = [part.strip(" '\"") for part in given]
    if not names or not all(names):
        raise ValueError(f"{name} must be a name, or names separated by commas, got {value!r}.")
    twice = sorted({part for part in names if names.count(part) > 1})
    if twice:
        raise ValueError(f"{name} must name each only once, got {', '.join(twice)} repeatedly.")
    return names if len(names) > 1 else names[0]


class SettledByDataset:
    """Mixed into a policy's configuration: settles its motion cameras, latent shape and stores."""

    motion_camera: OneOrSeveral | None
    motion_target: str
    motion_vae: str | None
    motion_latents: OneOrSeveral | None
    motion_latent_shape: tuple[int, int, int] | None
    flow_estimator: str | None
    flow_weights: str | None
    flow_max_magnitude: float
    image_resolution: Any
    empty_cameras: int
    # For the model card; no field of the configuration, and None outside training.
    dataset_facts: DatasetFacts | None = None
    _train_run: TrainRun | None = None

    @property
    def train_run(self) -> TrainRun | None:
        """The `lerobot-train` run that this configuration belongs to, if any."""
        return self._train_run

    def _name_views(self) -> None:
        """Bring cameras and stores to one form: a name for one view, a list for several.

        Raises:
            ValueError: If there is none, or one is there twice.
        """
        self.motion_camera = one_or_several("motion_camera", self.motion_camera)
        # The path of a single store may have a comma in it.
        is_one_path = isinstance(self.motion_latents, str) and self.motion_latents[:1] != "["
        if isinstance(self.motion_camera, list) or not is_one_path:
            self.motion_latents = one_or_several("motion_latents", self.motion_latents)

    @property
    def motion_cameras(self) -> list[str]:
        """Cameras whose motion is learned, one for each view; none while that is not settled."""
        if self.motion_camera is None:
            return []
        return [self.motion_camera] if isinstance(self.motion_camera, str) else self.motion_camera

    @property
    def absent_views(self) -> list[int]:
        """Views whose camera is one of LeRobot's empty ones, which no dataset has."""
        empty = [f"{EMPTY_CAMERA}{i}" for i in range(self.empty_cameras)]
        return [view for view, camera in enumerate(self.motion_cameras) if camera in empty]

    @property
    def seen_cameras(self) -> list[str]:
        """The motion cameras without the empty ones."""
        absent = self.absent_views
        return [camera for view, camera in enumerate(self.motion_cameras) if view not in absent]

    @property
    def motion_sample_shape(self) -> tuple[int, ...]:
        """What the motion head predicts of a sample: (C, h, w), of several views (V, C, h, w)."""
        shape, num_views = self.motion_latent_shape or (), len(self.motion_cameras)
        return (num_views, *shape) if num_views > 1 else shape

    def settle_camera(self, cameras: list[str]) -> None:
        """Choose the motion camera, or check those that are named.

        Args:
            cameras: Cameras that are there, as the policy names them.

        Raises:
            ValueError: If there is no camera, a named one is unknown, or several are there and none
                is named.
        """
        if not cameras:
            raise ValueError(
                "the dataset has no camera (no image or video feature) that the policy uses; "
                "motion images need one."
            )
        if self.motion_camera is None and len(cameras) == 1:
            self.motion_camera = cameras[0]
        if self.motion_camera is None:
            raise ValueError(
                f"motion_camera must be set, there are several cameras: {sorted(cameras)}. Pass "
                f"--policy.motion_camera={sorted(cameras)[0]}, say; a view of the whole scene "
                "suits best. Several, separated by commas, are learned together."
            )
        unknown = [camera for camera in self.seen_cameras if camera not in cameras]
        if unknown:
            raise ValueError(
                f"motion_camera must be one of {sorted(cameras)} (names after --rename_map), got "
                f"{', '.join(map(repr, unknown))}."
                + (_ABOUT_EMPTY_CAMERAS if len(self.motion_cameras) > 1 else "")
            )
        if not self.seen_cameras:
            raise ValueError(
                f"motion_camera names empty cameras alone, {self.motion_cameras}: there is no "
                f"motion to learn from. Name at least one of {sorted(cameras)}."
            )

    def settle_latent_shape(self) -> None:
        """Read the shape of the latents from the VAE's config.json, unless it is known.

        Serving needs no VAE. A run that makes targets on the fly does: there what is known must be
        the VAE's.

        Raises:
            OSError: If the VAE's configuration cannot be read.
            ValueError: If the image resolution or the known shape does not suit the VAE.
        """
        known = self.motion_latent_shape
        makes_targets = self.train_run is not None and self.motion_latents is None
        if known is not None and not makes_targets:
            return
        height, width = self.image_resolution
        shape = read_latent_spec(str(self.motion_vae)).latent_shape((height, width))
        if known is not None and tuple(known) != shape:
            raise ValueError(
                f"motion_vae: the latents of {self.motion_vae} have shape {shape}, but the motion "
                f"head expects {tuple(known)} (motion_latent_shape), at an image_resolution of "
                f"{height}x{width}. Use VAE and resolution that the checkpoint was trained with; "
                "for a new motion head, leave motion_latent_shape out (null)."
            )
        self.motion_latent_shape = shape

    def settle_latent_stores(self, paths: list[str], flow_estimator: str | None) -> None:
        """Note the stores that targets are read from, and how their flow was estimated.

        Args:
            paths: Directory of the store of each of `seen_cameras`.
            flow_estimator: The stores' flow estimator, which replaces the configured one; None if
                their targets are not drawn from flow.
        """
        found = dict(zip(self.seen_cameras, paths, strict=True))
        of_views = [found.get(camera) for camera in self.motion_cameras]
        self._found_stores: list[str | None] | str | None = (
            of_views if len(of_views) > 1 else of_views[0]
        )
        if flow_estimator is not None:
            self.flow_estimator = flow_estimator

    def _latent_store_paths(self) -> list[str | None] | str | None:
        """The store, or with several views that of each, None for one without a camera."""
        found: list[str | None] | str | None = getattr(self, "_found_stores", None)
        if found is not None or self.motion_latents is None:
            return found
        if self.motion_latents == AUTO_LATENTS or len(self.motion_cameras) > 1:
            raise ValueError(
                f"motion_latents={self.motion_latents} is settled when the policy is built for a "
                "dataset; build it first (make_policy does), or name the one store's directory."
            )
        return str(self.motion_latents)

    @property
    def motion_target_settings(self) -> dict[str, Any]:
        """Arguments of the `MotionTargetStep` that makes this policy's targets.

        Raises:
            ValueError: If the camera or the shape of the latents is not settled yet.
        """
        if self.motion_camera is None or self.motion_latent_shape is None:
            raise ValueError(
                "motion_camera and motion_latent_shape must be settled before targets can be made, "
                f"got {self.motion_camera} and {self.motion_latent_shape}. Build the policy with "
                "the dataset's metadata first (make_policy does)."
            )
        return {
            "camera": self.motion_camera,
            "flow_estimator": self.flow_estimator,
            "flow_weights": self.flow_weights,
            "max_magnitude": self.flow_max_magnitude,
            "vae": self.motion_vae,
            "latent_shape": list(self.motion_latent_shape),
            "image_resolution": list(self.image_resolution),
            "latents": self._latent_store_paths(),
            "motion_target": self.motion_target,
        }
