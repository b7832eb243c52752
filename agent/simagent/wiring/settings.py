"""Gives the worker what it goes by of the configuration."""

import os
from dataclasses import replace

from simagent.config import Config, ConfigError
from simagent.telemetry.pump import LOCAL_PACE, REMOTE_PACE
from simagent.transfer.unpack import Limits
from simagent.wiring.machine import containers
from simagent.worker.caretaker import ImageMarks
from simagent.worker.context import Settings
from simagent.worker.control import LOCAL_LOOKS, REMOTE_LOOKS
from simagent.worker.users import TaskUsers, closed_to, name_of, task_users


def settings(config: Config, *, own_task: bool = False) -> Settings:
    """Give what of the configuration the worker goes by.

    ``own_task`` tells that all that is run is a task of who runs it.
    """
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
        users=users_of(config, own_task=own_task),
        allow_root_images=config.allow_root_images,
        containers=containers(config),
        prefetch=config.prefetch,
        marks=ImageMarks(high=config.images_high / 100, low=config.images_low / 100),
        gpus=config.gpus,
        mpi_slots=config.mpi.slots,
        mpi_mode=config.mpi.mode,
        tags=config.tags,
    )


def users_of(config: Config, *, own_task: bool = False) -> TaskUsers:
    """Find whom tasks run as."""
    return task_users(
        uid=config.task_uid,
        slots=config.slots,
        root_programs=config.allow_root_process,
        own_task=own_task,
    )


def prepare_for(config: Config, users: TaskUsers) -> None:
    """See that the users of programs get to their tasks' folders, and to no others.

    Raises `ConfigError`, OSError.
    """
    if users.own_programs or not config.process_allowed:
        return
    for user in users.all:
        if closed := closed_to(config.state_dir, user):
            raise ConfigError(
                f"state_dir: tasks run as {name_of(user[0])}, who may not pass {closed}: "
                f"chmod o+x {closed}, name another --state-dir, or set allow_root_process"
            )
    if config.store is None:  # else it is for others, too, and they have seen to it
        store = config.state_dir / "store"
        store.mkdir(mode=0o700, parents=True, exist_ok=True)
        store.chmod(0o700)
