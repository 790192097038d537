"""``kind: curate``: from an uncurated pool to a balanced dataset without duplicates (DINOv2 paper, section 3)."""

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from heliostat.config.base import Name, Root, Section, Share
from heliostat.errors import InvalidValueError

Similarity = Annotated[float, Field(ge=-1.0, le=1.0)]
Count = Annotated[int, Field(gt=0)]


class EmbeddingConfig(Section):
    """A function from images to vectors that are compared by cosine."""

    source: str | None = Field(
        None,
        min_length=1,
        description="copy (built in, for duplicates), dct-hash (built in), run:NAME (the teacher of a run under the "
        "same root), weights:X (whatever heliostat.load_backbone takes), or package.module:function of an ImageMap; "
        "null is none",
    )
    image_px: int = Field(224, gt=0, description="side to which images are resized for a network")
    gpus: float = Field(0.0, ge=0, description="GPUs of each process that embeds; 0 embeds on CPUs")


class CopyEmbeddingConfig(EmbeddingConfig):
    """The embedding that finds copies."""

    source: str | None = Field("copy", min_length=1, description="as embedding.source; null finds exact copies only")


class FilterConfig(Section):
    """What an image must have. The defaults drop what no training can use, and nothing else."""

    min_side_px: int = Field(32, gt=0, description="shorter side")
    max_ratio: float = Field(5.0, ge=1, description="longer over shorter side")
    min_sharpness: float = Field(0.0, ge=0, description="variance of the Laplacian of grey values, at 256 px")
    min_entropy_bits: float = Field(1.0, ge=0, le=8, description="entropy of the histogram of grey values")
    min_deviation: float = Field(2.0, ge=0, description="standard deviation of grey values: less is near-constant")
    allow: str | None = Field(None, description="file with ids or sources, one per line: only these stay")
    deny: str | None = Field(None, description="file with ids or sources, one per line: these go")
    plugins: tuple[str, ...] = Field(
        (), description="package.module:function of an ImageMap with a column score; what scores above max_score goes"
    )
    max_score: Share = Field(0.5, description="see plugins")

    @field_validator("plugins", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value


class SearchConfig(Section):
    """How nearest neighbours are found."""

    code: Literal["flat", "sq8", "rabitq", "pq"] = Field(
        "sq8",
        description="how vectors are held: 4, 1, 1/8 or 1/8 bytes per dimension, besides 2 for exact similarities",
    )
    flat_rows: int = Field(20_000, ge=0, description="up to so many vectors are all compared with each other")
    recall: Share = Field(0.98, description="share of true neighbours that has to be found, measured on samples")
    gpus: float = Field(0.0, ge=0, description="GPUs of each process that searches, which needs faiss-gpu; 0 is none")
    shard_gib: float = Field(8.0, gt=0, description="host memory of a process that searches, at most")

    @model_validator(mode="after")
    def _codes_of_gpus(self) -> Self:
        if self.gpus and self.code == "rabitq":
            raise InvalidValueError(
                "search.code rabitq is not searched by GPUs", "Set search.code=sq8, or search.gpus=0"
            )
        return self


class DedupConfig(Section):
    """Near-duplicates: components of a graph of neighbours; one image of each stays."""

    embedding: CopyEmbeddingConfig = Field(default_factory=lambda: CopyEmbeddingConfig.model_validate({}))
    neighbours: int = Field(64, gt=0, description="neighbours of each image that are looked at")
    threshold: Similarity | None = Field(
        None, description="what is more similar is the same image; null is the embedding's own, calibrated on copies"
    )
    benchmarks: tuple[Name, ...] = Field((), description="datasets that no image may repeat")
    benchmark_threshold: Similarity | None = Field(
        None, description="the same towards benchmarks, more cautious; null is the embedding's own"
    )
    existing: Name | None = Field(None, description="an earlier curated dataset: what repeats it goes, it itself stays")

    @field_validator("benchmarks", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value


class QuerySet(Section):
    """A dataset whose like is wanted from the pool."""

    dataset: Name
    method: Literal["sample", "clusters"] = Field(
        "clusters", description="sample: neighbours of each image, for sets above a million; clusters: of each cluster"
    )
    neighbours: int = Field(4, gt=0, description="method sample: images of the pool per query (paper: 4 and 32)")
    min_hits: int = Field(3, ge=0, description="method clusters: clusters with more queries than this are taken from")
    per_cluster: int = Field(10_000, gt=0, description="method clusters: images of each")
    cap: int = Field(1_000_000, gt=0, description="images for this set, at most")


class LevelConfig(Section):
    """One level of hierarchical k-means."""

    clusters: Count
    resamplings: int = Field(10, ge=0, description="how often the images closest to the centroids are clustered again")
    closest: int = Field(2, gt=0, description="how many of each cluster then, about half of its mean size")


class ClusterConfig(Section):
    """Clusters for retrieval and balance, the finest first."""

    levels: tuple[LevelConfig, ...] = Field((), description="each with fewer clusters than the one before")
    rounds: int = Field(50, gt=0, description="of each k-means, at most")
    starts: int = Field(1, gt=0, description="of each k-means; the best is kept")

    @field_validator("levels", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("levels")
    @classmethod
    def _become_fewer(cls, value: tuple[LevelConfig, ...]) -> tuple[LevelConfig, ...]:
        if any(below.clusters <= above.clusters for below, above in pairwise(value)):
            raise ValueError("each level has fewer clusters than the one before")
        return value


class CurateRecipe(Section):
    """Filter, de-duplicate, retrieve and balance a pool. The result is a dataset that refers to rows of the pool."""

    kind: Literal["curate"]
    name: Name = Field(description="name of the curation, and of the dataset that it makes")
    root: Root = "heliostat-root"
    seed: int = Field(0, ge=0, description="everything random follows from it")
    pool: tuple[Name, ...] = Field(min_length=1, description="datasets that are curated")
    as_is: tuple[Name, ...] = Field((), description="datasets whose images are all taken, without any stage")
    filter: FilterConfig = Field(default_factory=lambda: FilterConfig.model_validate({}))
    dedup: DedupConfig = Field(default_factory=lambda: DedupConfig.model_validate({}))
    embedding: EmbeddingConfig = Field(
        default_factory=lambda: EmbeddingConfig.model_validate({}), description="for retrieval and clusters"
    )
    search: SearchConfig = Field(default_factory=lambda: SearchConfig.model_validate({}))
    retrieve: tuple[QuerySet, ...] = Field((), description="sets whose like is taken")
    cluster: ClusterConfig = Field(default_factory=lambda: ClusterConfig.model_validate({}))
    sample: int | None = Field(None, gt=0, description="images that are taken evenly of all clusters; null is none")
    until: Literal["filter", "dedup", "embed", "cluster"] | None = Field(
        None, description="stop after this stage, whose results stay; the same recipe without it goes on"
    )

    @property
    def looks_at_content(self) -> bool:
        """Whether a stage needs the embedding of what images show."""
        return bool(self.retrieve) or self.sample is not None or self.until in ("embed", "cluster")

    @property
    def datasets(self) -> list[str]:
        """Every dataset that is named, each once."""
        existing = [self.dedup.existing] if self.dedup.existing is not None else []
        queries = [each.dataset for each in self.retrieve]
        return list(dict.fromkeys([*self.as_is, *existing, *self.pool, *self.dedup.benchmarks, *queries]))

    @field_validator("pool", "as_is", "retrieve", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _has_what_its_stages_need(self) -> Self:
        if self.dedup.embedding.source is None and (self.dedup.benchmarks or self.dedup.existing):
            raise InvalidValueError(
                "dedup.benchmarks and dedup.existing need an embedding, and dedup.embedding.source is null",
                "Set dedup.embedding.source to copy",
            )
        needs_clusters = any(each.method == "clusters" for each in self.retrieve)
        needs_clusters = needs_clusters or self.sample is not None or self.until == "cluster"
        if needs_clusters and not self.cluster.levels:
            raise InvalidValueError(
                "sample, until=cluster and retrieval by clusters need cluster.levels, which is empty",
                "Name levels, for example cluster: {levels: [{clusters: 1000}]}",
            )
        if (self.retrieve or needs_clusters or self.until == "embed") and self.embedding.source is None:
            raise InvalidValueError(
                "retrieval and clusters need an embedding of what images show, and embedding.source is null",
                "Set embedding.source to run:NAME, weights:PATH or a plug-in",
            )
        named = [*self.pool, *self.as_is]
        if twice := {name for name in named if named.count(name) > 1}:
            raise InvalidValueError(f"{min(twice)!r} is named twice in pool and as_is", "Name each dataset once")
        if self.name in named:
            raise InvalidValueError(f"the curation {self.name!r} would overwrite what it reads", "Choose another name")
        return self
