"""Makes what ends an agent by itself, from the configuration."""

from simagent.clouds.aws import Aws
from simagent.config import Config, ConfigError
from simagent.ports.clock import Clock
from simagent.ports.cloud import Cloud
from simagent.wiring.machine import open_cloud
from simagent.worker.endoflife import EXIT, End, Terms
from simagent.worker.ends import POWEROFF, Command, Terminate


def open_terms(config: Config, clock: Clock) -> Terms:
    """Tell when the agent ends by itself.

    What ends the machine does so by the machine's age, which counts from its boot, as the clock.
    """
    return Terms(
        idle=config.idle_timeout,
        lifetime=config.max_lifetime,
        grace=config.max_lifetime_grace,
        born=clock.now() if config.idle_action == "exit" else 0.0,
    )


def open_end(config: Config, cloud: Cloud | None) -> End:
    """Make what is done then. Raises `ConfigError`."""
    match config.idle_action:
        case "poweroff":
            return Command("poweroff", POWEROFF)
        case "command":
            return Command("idle_command", config.idle_command)
        case "terminate":
            if not isinstance(cloud, Aws):
                found = "none was found" if cloud is None else f"this machine is of {cloud.name}"
                raise ConfigError(
                    f"idle_action: AWS alone terminates machines, and {found}: use poweroff, or "
                    "set cloud = 'aws'"
                )
            from simagent.clouds.aws_autoscaling import AwsGroup

            return Terminate(AwsGroup(cloud), Command("poweroff", POWEROFF))
    return EXIT


def try_end(config: Config) -> End:
    """Make it for the cloud of this machine, to see whether it could be. Raises `ConfigError`."""
    return open_end(config, open_cloud(config))
