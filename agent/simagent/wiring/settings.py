"""Gives the worker what it goes by of the configuration."""

import os
from dataclasses import replace

from simagent.config import Config
from simagent.telemetry.pump import LOCAL_PACE, REMOTE_PACE
from simagent.transfer.unpack import Limits
from simagent.wiring.machine import containers
from simagent.worker.caretaker import ImageMarks
from simagent.worker.containers import slot_users, task_user
from simagent.worker.context import Settings
from simagent.worker.control import LOCAL_LOOKS, REMOTE_LOOKS


def settings(config: Config) -> Settings:
    """Give what of the configuration the worker goes by."""

    return Settings(
        group=config.group,
        allow_process=config.process_allowed,
        # With engines that others reach, a task could read the files of a machine that is not
        # its user's.
        allow_file_inputs=config.embedded,
        pass_env=config.pass_env,
        orphan_limit=config.orphan_limit,
        pack_threads=config.pack_threads or len(os.sched_getaffinity(0)),
        looks=REMOTE_LOOKS if config.store_charges else LOCAL_LOOKS,
        pace=replace(
            REMOTE_PACE if config.store_charges else LOCAL_PACE, sample=config.sample_every
        ),
        inputs=Limits(max_bytes=config.max_input_bytes, max_files=config.max_input_files),
        max_processes=config.max_processes or None,
        max_file_bytes=config.max_file_bytes or None,
        max_log_bytes=config.max_log_bytes or None,
        min_free=config.min_free,
        task_user=task_user(config.task_uid),
        allow_root_images=config.allow_root_images,
        containers=containers(config),
        prefetch=config.prefetch,
        marks=ImageMarks(high=config.images_high / 100, low=config.images_low / 100),
        slot_users=slot_users(config.task_uid, config.slots),
        gpus=config.gpus,
        mpi_slots=config.mpi.slots,
        mpi_mode=config.mpi.mode,
        tags=config.tags,
    )
