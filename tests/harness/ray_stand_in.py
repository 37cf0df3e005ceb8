"""A stand-in for the few functions of Ray that are used: the seats are in this process."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any


class RayError(Exception):
    pass


class StandIn(ModuleType):
    """Ray with `count` cores: an actor is an object of this process, a result is there at once."""

    def __init__(self, count: int) -> None:
        super().__init__("ray")
        self.count, self.actors, self.asked = count, [], {}
        self.resource = "CPU"
        self.exceptions = SimpleNamespace(RayError=RayError)
        self.env_vars: dict[str, str] = {}
        self.init_with: dict[str, Any] = {}

    def init(self, address: str, **options: Any) -> None:
        code = Path(options["runtime_env"]["working_dir"])
        self.env_vars = options["runtime_env"]["env_vars"]
        self.init_with = {"address": address, "code": sorted(p.name for p in code.iterdir())}

    def shutdown(self) -> None:
        for actor in self.actors:
            self.kill(actor)

    def cluster_resources(self) -> dict[str, float]:
        return {self.resource: float(self.count)}

    available_resources = cluster_resources

    def remote(self, kind: type) -> Any:
        ray = self

        class Made:
            def options(self, **given: Any) -> Made:
                ray.asked = given
                return self

            def remote(self) -> Actor:
                ray.actors.append(Actor(kind()))
                return ray.actors[-1]

        return Made()

    def wait(self, results: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        return results, []

    def get(self, result: Any) -> Any:
        if isinstance(result.value, RayError):
            raise result.value
        return result.value

    def kill(self, actor: Actor) -> None:
        if not actor.dead:
            actor.seat.kill()
        actor.dead = True


class Result:
    def __init__(self, value: Any) -> None:
        self.value = value


class Actor:
    def __init__(self, seat: Any) -> None:
        self.seat, self.dead = seat, False

    def __getattr__(self, name: str) -> Any:
        actor = self

        class Call:
            def remote(self, *arguments: Any) -> Result:
                if actor.dead:
                    return Result(RayError("the actor at 192.0.2.7 is dead"))
                return Result(getattr(actor.seat, name)(*arguments))

        return Call()
