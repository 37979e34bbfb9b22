"""Settings that stages of a recipe take from each other: the kind that a stage passes on, the evaluation sets."""

from dataclasses import dataclass, field, replace

from togi.core.errors import RecipeError
from togi.core.settings import Ref, references
from togi.recipe.schema import MODEL_KINDS, Recipe
from togi.stages.base import UNKNOWN, StageSettings
from togi.stages.table import STAGES


def completed(recipe: Recipe) -> Recipe:
    """The recipe, with the settings that stages take from other stages filled in. Raises RecipeError if they cannot
    be."""
    around = Neighbours(recipe)
    return replace(recipe, stages={name: around.stage(name) for name in recipe.stages})


@dataclass(slots=True)
class Neighbours:
    """The `Around` of one recipe. A cycle of stages stays as it is: the graph reports it."""

    recipe: Recipe
    done: dict[str, StageSettings] = field(default_factory=dict)
    begun: dict[str, None] = field(default_factory=dict)

    def stage(self, name: str) -> StageSettings:
        """A stage's settings in the recipe."""
        if name not in self.done and name not in self.begun:
            self.begun[name] = None
            try:
                self.done[name] = self.recipe.stages[name].within(self)
            except ValueError as error:
                raise RecipeError(f"{self.recipe.tree.where(('stages', name))}: stages.{name}: {error}") from None
        return self.done.get(name, self.recipe.stages[name])

    def kind(self, ref: Ref) -> str | None:
        if ref.name not in self.recipe.stages:
            return None if ref.name in self.recipe.data else UNKNOWN
        settings = self.stage(ref.name)
        return STAGES[settings.type].outputs(settings).get(ref.output, UNKNOWN)

    def stands_for(self, ref: Ref) -> str | None:
        if ref.name in self.recipe.models:
            return MODEL_KINDS[self.recipe.models[ref.name].kind]
        found = self.kind(ref)
        return None if found == UNKNOWN else found

    def wanted(self, settings: StageSettings) -> str | None:
        name = next((name for name, each in self.recipe.stages.items() if each is settings), "")
        return self._wanted(name, ())

    def _wanted(self, name: str, seen: tuple[str, ...]) -> str | None:
        """The kind that the readers of a stage need, also through stages that pass its records on."""
        for reader, settings in self.recipe.stages.items():
            for ref in (ref for _, ref in references(settings) if ref.name == name and reader not in seen):
                passed = ref in settings.passes
                kind = self._wanted(reader, (*seen, name)) if passed else ref.kinds[0] if len(ref.kinds) == 1 else None
                if kind is not None:
                    return kind
        return None

    def measured(self) -> list[Ref]:
        found = [
            ref
            for settings in self.recipe.stages.values()
            if (measures := STAGES[settings.type].measures) is not None
            for ref in measures(settings)
        ]
        return list(dict.fromkeys(found))
