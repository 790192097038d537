"""Everything that can go wrong on purpose. This tree is the index of error codes.

HeliostatError                       one line: code, what was wrong with its value and the rule, what to do next
├── ConfigError                      HS-CONF-…  the recipe, the environment or the command line
│   ├── RecipeNotFoundError          HS-CONF-001
│   ├── RecipeSyntaxError            HS-CONF-002
│   ├── UnknownKeyError              HS-CONF-003
│   ├── InvalidValueError            HS-CONF-004
│   ├── OverrideSyntaxError          HS-CONF-005
│   ├── IndivisibleBatchError        HS-CONF-006
│   ├── TooManyWorkersError          HS-CONF-007
│   ├── ChangedConfigError           HS-CONF-008
│   ├── MissingExtraError            HS-CONF-009
│   ├── MissingKeyError              HS-CONF-010
│   ├── CommandLineError             HS-CONF-011
│   ├── TooFewGpusError              HS-CONF-012
│   ├── InsecureClusterError         HS-CONF-013  a cluster that anybody could use, or a token that anybody can read
│   └── SecretNotFoundError          HS-CONF-014
├── StorageError                     HS-STOR-…  folders and object stores
│   ├── ObjectNotFoundError          HS-STOR-001
│   ├── ObjectExistsError            HS-STOR-002  a conditional create lost
│   ├── VersionConflictError         HS-STOR-003  a conditional replace lost
│   ├── StoreUnreachableError        HS-STOR-004
│   ├── StoreDeniedError             HS-STOR-005
│   ├── InvalidUrlError              HS-STOR-006
│   ├── InvalidKeyError              HS-STOR-007
│   └── StoreFailedError             HS-STOR-008
├── DataError                        HS-DATA-…  datasets, shards, images
│   ├── SourceNotFoundError          HS-DATA-001
│   ├── NoImagesError                HS-DATA-002
│   ├── DatasetNotFoundError         HS-DATA-003
│   ├── CorruptManifestError         HS-DATA-004
│   ├── CorruptShardError            HS-DATA-005
│   ├── RejectedImageError           HS-DATA-006  becomes a line of the quarantine
│   ├── UnlabelledDatasetError       HS-DATA-007
│   ├── SampleOrderError             HS-DATA-008
│   ├── DecoderCrashedError          HS-DATA-009
│   ├── NoDataPoolError              HS-DATA-010
│   ├── DecoderNotStartedError       HS-DATA-011
│   ├── SelectionError               HS-DATA-012
│   ├── TooManyRefusedError          HS-DATA-013
│   └── PluginFailedError            HS-DATA-014  code of the user's own did not do what it is there for
├── CheckpointError                  HS-CKPT-…
│   ├── CorruptCheckpointError       HS-CKPT-001
│   ├── IncompatibleCheckpointError  HS-CKPT-002
│   ├── NoCheckpointError            HS-CKPT-003
│   ├── CorruptLogError              HS-CKPT-004
│   ├── WeightsNotFoundError         HS-CKPT-005
│   ├── UnreadableWeightsError       HS-CKPT-006
│   ├── UnsupportedExportError       HS-CKPT-007
│   ├── ExportExistsError            HS-CKPT-008
│   ├── ExportMismatchError          HS-CKPT-009
│   ├── SaveAbandonedError           HS-CKPT-010  a part of a checkpoint will not come
│   └── SnapshotLostError            HS-CKPT-011  a snapshot in other nodes' memory is not there
├── RunError                         HS-RUN-…   a run that cannot go on
│   ├── FencedError                  HS-RUN-001  a newer attempt holds the lease
│   ├── NonFiniteLossError           HS-RUN-002
│   ├── TrainingFailedError          HS-RUN-003
│   ├── RunNotFoundError             HS-RUN-004
│   ├── PreemptedError               HS-RUN-005  gave up after too many preemptions
│   ├── CorruptLockError             HS-RUN-006
│   ├── NotTrainingError             HS-RUN-007  asked for a checkpoint, and nobody answers
│   ├── ClusterUnreachableError      HS-RUN-008
│   ├── ClusterDeniedError           HS-RUN-009
│   ├── SubmissionRefusedError       HS-RUN-010  the cluster does not take a job
│   ├── JobLostError                 HS-RUN-011  a job ended without a word
│   ├── CancelledError               HS-RUN-012  somebody asked for the end
│   ├── JobFailedError               HS-RUN-013  a job on a cluster says that it failed
│   └── ArtifactChangedError         HS-RUN-014  what a stage starts from is not what was handed on
├── CurationError                    HS-CUR-…   a curation that cannot go on
│   ├── CorruptResultError           HS-CUR-001  what a stage has written is damaged or gone
│   └── UnknownImageError            HS-CUR-002  an image that the curation has never seen
└── EvaluationError                  HS-EVAL-…
    ├── TooFewSamplesError           HS-EVAL-001
    └── NonFiniteFeaturesError       HS-EVAL-002
"""


class HeliostatError(Exception):
    """An error that a user can act on.

    ``str()`` is one line: the code, the fact (with the value and the rule it broke), the next step. Messages never hold
    secrets. Errors cross process boundaries (Ray pickles them), so a subclass takes the same two strings.
    """

    code = "HS-000"

    def __init__(self, fact: str, next_step: str) -> None:
        self.fact = " ".join(fact.split())
        self.next_step = " ".join(next_step.split())
        super().__init__(self.fact, self.next_step)

    def __str__(self) -> str:
        return f"{self.code}: {self.fact}. {self.next_step}."


class ConfigError(HeliostatError):
    """The recipe, the environment or the command line asks for something impossible."""

    code = "HS-CONF-000"


class RecipeNotFoundError(ConfigError):
    """The recipe file cannot be read."""

    code = "HS-CONF-001"


class RecipeSyntaxError(ConfigError):
    """The recipe is not a YAML mapping, or names a key twice."""

    code = "HS-CONF-002"


class UnknownKeyError(ConfigError):
    """A key that no recipe has; the message names the nearest one."""

    code = "HS-CONF-003"


class InvalidValueError(ConfigError):
    """A value of the wrong type or outside its range."""

    code = "HS-CONF-004"


class OverrideSyntaxError(ConfigError):
    """A ``--set`` that is not ``a.b=value``."""

    code = "HS-CONF-005"


class IndivisibleBatchError(ConfigError):
    """``global_batch`` is not a multiple of ``slot_batch``."""

    code = "HS-CONF-006"


class TooManyWorkersError(ConfigError):
    """More workers than a step has slots."""

    code = "HS-CONF-007"


class ChangedConfigError(ConfigError):
    """A run of this name exists with another configuration."""

    code = "HS-CONF-008"


class MissingExtraError(ConfigError):
    """The command needs packages of an extra that is not installed."""

    code = "HS-CONF-009"


class MissingKeyError(ConfigError):
    """A key without a default that neither the recipe nor an override sets."""

    code = "HS-CONF-010"


class CommandLineError(ConfigError):
    """A command, an option or an argument that does not exist, or is missing."""

    code = "HS-CONF-011"


class TooFewGpusError(ConfigError):
    """More workers than GPUs."""

    code = "HS-CONF-012"


class InsecureClusterError(ConfigError):
    """A cluster that anybody could use, or a token that anybody could read."""

    code = "HS-CONF-013"


class SecretNotFoundError(ConfigError):
    """What a reference to a secret stands for is not there."""

    code = "HS-CONF-014"


class StorageError(HeliostatError):
    """A folder or object store did not do what was asked."""

    code = "HS-STOR-000"


class ObjectNotFoundError(StorageError):
    """No object has this key."""

    code = "HS-STOR-001"


class ObjectExistsError(StorageError):
    """A conditional create found the key taken."""

    code = "HS-STOR-002"


class VersionConflictError(StorageError):
    """A conditional replace found another version than the one it had read."""

    code = "HS-STOR-003"


class StoreUnreachableError(StorageError):
    """Nothing answers at the endpoint, or it stopped answering for longer than the retry budget."""

    code = "HS-STOR-004"


class StoreDeniedError(StorageError):
    """The credentials are missing, wrong, expired or not allowed to do this."""

    code = "HS-STOR-005"


class InvalidUrlError(StorageError):
    """The root is neither a folder nor ``s3://bucket/prefix``."""

    code = "HS-STOR-006"


class InvalidKeyError(StorageError):
    """An object key that would leave the root."""

    code = "HS-STOR-007"


class StoreFailedError(StorageError):
    """The store answered with an error that is none of the above."""

    code = "HS-STOR-008"


class DataError(HeliostatError):
    """A dataset, a shard or an image cannot be used."""

    code = "HS-DATA-000"


class SourceNotFoundError(DataError):
    """The folder to ingest is not there."""

    code = "HS-DATA-001"


class NoImagesError(DataError):
    """The source holds no image that can be used."""

    code = "HS-DATA-002"


class DatasetNotFoundError(DataError):
    """No dataset of this name, or no such manifest."""

    code = "HS-DATA-003"


class CorruptManifestError(DataError):
    """A manifest is not what its hash says, or not in a known format."""

    code = "HS-DATA-004"


class CorruptShardError(DataError):
    """A row group's bytes are not those that were ingested."""

    code = "HS-DATA-005"


class RejectedImageError(DataError):
    """One image cannot be accepted; ingest writes it to the quarantine and goes on.

    ``reason`` is the short word of the quarantine's lines, one of ``heliostat.data.images.Reason``.
    """

    code = "HS-DATA-006"

    def __init__(self, fact: str, next_step: str, reason: str = "undecodable") -> None:
        super().__init__(fact, next_step)
        self.reason = reason


class UnlabelledDatasetError(DataError):
    """A protocol needs labels that the dataset does not have."""

    code = "HS-DATA-007"


class SampleOrderError(DataError):
    """The stream brought other samples than the order of the run asks for."""

    code = "HS-DATA-008"


class DecoderCrashedError(DataError):
    """The process that decodes the images of a run died again and again over the same ones."""

    code = "HS-DATA-009"


class NoDataPoolError(DataError):
    """Crops are to be made on a pool of nodes, and no node offers its resource."""

    code = "HS-DATA-010"


class DecoderNotStartedError(DataError):
    """The process that decodes untrusted images does not start, which says nothing of any image."""

    code = "HS-DATA-011"


class SelectionError(DataError):
    """Rows cannot be selected like this, or a selection cannot be written out under this name."""

    code = "HS-DATA-012"


class TooManyRefusedError(DataError):
    """More of a source goes to the quarantine than its ingest allows."""

    code = "HS-DATA-013"


class PluginFailedError(DataError):
    """A plug-in raised something, or gave what it must not give."""

    code = "HS-DATA-014"


class CheckpointError(HeliostatError):
    """A checkpoint cannot be written, read or used."""

    code = "HS-CKPT-000"


class CorruptCheckpointError(CheckpointError):
    """A checkpoint's bytes are not those that were committed."""

    code = "HS-CKPT-001"


class IncompatibleCheckpointError(CheckpointError):
    """A checkpoint belongs to another model."""

    code = "HS-CKPT-002"


class NoCheckpointError(CheckpointError):
    """The run has no committed checkpoint."""

    code = "HS-CKPT-003"


class CorruptLogError(CheckpointError):
    """The commit log of a run misses an entry, or holds one that cannot be read."""

    code = "HS-CKPT-004"


class WeightsNotFoundError(CheckpointError):
    """No weights at this path, and none of this name."""

    code = "HS-CKPT-005"


class UnreadableWeightsError(CheckpointError):
    """A file of weights that is broken, hostile or in no known format; nothing of it was used."""

    code = "HS-CKPT-006"


class UnsupportedExportError(CheckpointError):
    """The format cannot hold this model."""

    code = "HS-CKPT-007"


class ExportExistsError(CheckpointError):
    """The export would overwrite files."""

    code = "HS-CKPT-008"


class ExportMismatchError(CheckpointError):
    """What was exported does not compute what the model computes; nothing was kept."""

    code = "HS-CKPT-009"


class SaveAbandonedError(CheckpointError):
    """A checkpoint was given up while it was written: its attempt ends."""

    code = "HS-CKPT-010"


class SnapshotLostError(CheckpointError):
    """A snapshot could not be put into other nodes' memory, or is there no more; storage has what was committed."""

    code = "HS-CKPT-011"


class RunError(HeliostatError):
    """A run cannot go on."""

    code = "HS-RUN-000"


class FencedError(RunError):
    """A newer attempt holds the lease of the run; this one must stop without writing."""

    code = "HS-RUN-001"


class NonFiniteLossError(RunError):
    """The loss is not a finite number."""

    code = "HS-RUN-002"


class TrainingFailedError(RunError):
    """A training worker failed; the first cause is named."""

    code = "HS-RUN-003"


class RunNotFoundError(RunError):
    """No run of this name under the root."""

    code = "HS-RUN-004"


class PreemptedError(RunError):
    """The workers were taken away more often than the run allows; it can be resumed."""

    code = "HS-RUN-005"


class CorruptLockError(RunError):
    """A run's ``config.lock.json`` cannot be read."""

    code = "HS-RUN-006"


class NotTrainingError(RunError):
    """A run that does not train cannot make a checkpoint."""

    code = "HS-RUN-007"


class ClusterUnreachableError(RunError):
    """No Ray cluster answers at an address."""

    code = "HS-RUN-008"


class ClusterDeniedError(RunError):
    """A Ray cluster does not accept the token."""

    code = "HS-RUN-009"


class SubmissionRefusedError(RunError):
    """A cluster does not take a job."""

    code = "HS-RUN-010"


class JobLostError(RunError):
    """A job on a cluster ended without saying how."""

    code = "HS-RUN-011"


class CancelledError(RunError):
    """A job ended because somebody asked for it."""

    code = "HS-RUN-012"


class JobFailedError(RunError):
    """A job on a cluster failed; the message is its own."""

    code = "HS-RUN-013"


class ArtifactChangedError(RunError):
    """What a job starts from is not what was handed on to it."""

    code = "HS-RUN-014"


class CurationError(HeliostatError):
    """A curation cannot go on, or cannot answer."""

    code = "HS-CUR-000"


class CorruptResultError(CurationError):
    """What a stage of a curation has written is damaged or gone."""

    code = "HS-CUR-001"


class UnknownImageError(CurationError):
    """An image that a curation has never seen."""

    code = "HS-CUR-002"


class EvaluationError(HeliostatError):
    """A protocol cannot be evaluated on this data."""

    code = "HS-EVAL-000"


class TooFewSamplesError(EvaluationError):
    """The dataset holds fewer samples than the protocol needs."""

    code = "HS-EVAL-001"


class NonFiniteFeaturesError(EvaluationError):
    """Features hold NaN or infinity: no distance between them means anything."""

    code = "HS-EVAL-002"
