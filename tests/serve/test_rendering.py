"""Whether a server's template writes all turns of a conversation, as clients find out through /tokenize."""

from dataclasses import replace

import pytest
from served import serving

from togi.client.endpoint import Endpoint
from togi.client.rendering import unread_roles
from togi.core.errors import InputError
from togi.rollout.local import Sampler
from togi.serve.app import Served
from togi.serve.chat import Speaker, chat_app
from togi.text.grounded import Shown, asked
from togi.text.template import Template, get_template

TURNS = asked([Shown("Glaciers", "They lost 30 % of their volume.")], "How much was lost?")


def test_turns_that_a_template_leaves_out_or_replaces_are_found(model):
    def beside(name: str, template: Template) -> tuple[Served, Speaker]:
        engine = Sampler(model.net, model.tokenizer, template.terminator)
        served = Served(name=name, kind="causal", limit=model.context, vocabulary=300)
        return served, Speaker(engine=engine, tokenizer=model.tokenizer, template=template)

    fixed = replace(model.template, fixed_system="Be kind.")
    others = [beside("fixed", fixed), beside("roleless", get_template("chatml", model.tokenizer))]
    with serving(chat_app(*beside("whole", model.template), beside=others)) as url:
        found = {
            name: unread_roles(Endpoint(name=name, urls=(f"{url}/v1",), model=name), TURNS)
            for name in ("whole", "fixed", "unknown")
        }
        with pytest.raises(InputError, match="refuses the conversation: template 'chatml' has no role 'documents'"):
            unread_roles(Endpoint(name="roleless", urls=(f"{url}/v1",), model="roleless"), TURNS)
    assert found == {"whole": [], "fixed": ["system"], "unknown": None}
    assert unread_roles(Endpoint(name="gone", urls=(f"{url}/v1",), model="whole"), TURNS) is None
