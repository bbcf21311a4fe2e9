"""How clients get in, on both databases."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace

import numpy as np
import pytest
from tests.store.rows import enrolled, invitation_of

from hansa.core.errors import RefusedError, StoreConflictError

TOLD = {"attributes": {"region": "eu"}, "version": "1.2.0", "consent": True}


async def invited(store, invitation, name=None):
    async with store.transaction() as rows:
        return await rows.clients.invite(invitation, name=name, at=1.0)


async def redeemed(store, invitation, key, at=2.0):
    async with store.transaction() as rows:
        return await rows.clients.redeem(invitation.digest, public_key=key, at=at, **TOLD)


async def refused(store, invitation, key, at=2.0):
    with pytest.raises(RefusedError) as caught:
        await redeemed(store, invitation, key, at)
    assert caught.value.code == "HANSA-ENROL-TOKEN"
    return str(caught.value)


def test_a_named_invitation_gives_the_number_at_once_in_order_of_invitation(run_on):
    async def test(store, seed):
        names = ["north", "east", "south"]
        tokens = [invitation_of(seed.population) for _ in names]
        clients = [await invited(store, token, name) for token, name in zip(tokens, names, strict=True)]
        assert [(client.number, client.name, client.state) for client in clients] == [
            (0, "north", "invited"), (1, "east", "invited"), (2, "south", "invited")]  # fmt: skip
        south = await redeemed(store, tokens[2], secrets.token_bytes(32))
        assert (south.id, south.number, south.state, south.attributes) == (
            clients[2].id,
            2,
            "enrolled",
            {"region": "eu"},
        )
        async with store.reading() as rows:
            assert await rows.clients.size(seed.population.id) == 3
            assert await rows.clients.counts(seed.population.id) == {("invited", ""): 2, ("enrolled", "1.2.0"): 1}

    run_on(test)


def test_redeeming_again_with_the_same_key_gets_the_same_client_even_when_the_token_is_used_up_and_expired(run_on):
    async def test(store, seed):
        token = invitation_of(seed.population, expires_at=5.0)
        await invited(store, token)
        key = secrets.token_bytes(32)
        first = await redeemed(store, token, key)
        assert await redeemed(store, token, key, at=9.0) == first
        async with store.reading() as rows:
            events = await rows.events.after(seed.tenant.id, 0, 10)
            assert [event.kind for event in events] == ["client.enrolled"]

    run_on(test)


def test_a_token_that_is_unknown_used_up_or_expired_is_refused_in_the_same_words(run_on):
    async def test(store, seed):
        used, late = invitation_of(seed.population), invitation_of(seed.population, expires_at=2.0)
        await invited(store, used)
        await invited(store, late)
        await redeemed(store, used, secrets.token_bytes(32))
        said = {
            await refused(store, invitation_of(seed.population), secrets.token_bytes(32)),
            await refused(store, used, secrets.token_bytes(32)),
            await refused(store, late, secrets.token_bytes(32), at=2.0),
        }
        assert len(said) == 1

    run_on(test)


def test_a_token_for_three_lets_in_three_however_many_try_at_once(run_on):
    async def test(store, seed):
        token = invitation_of(seed.population, uses=3)
        await invited(store, token)
        tries = [redeemed(store, token, secrets.token_bytes(32)) for _ in range(12)]
        found = await asyncio.gather(*tries, return_exceptions=True)
        clients = [each for each in found if not isinstance(each, BaseException)]
        assert sorted(client.number for client in clients) == [0, 1, 2]
        assert {each.code for each in found if isinstance(each, BaseException)} == {"HANSA-ENROL-TOKEN"}

    run_on(test)


def test_the_same_key_at_once_gets_one_client(run_on):
    async def test(store, seed):
        token, key = invitation_of(seed.population, uses=9), secrets.token_bytes(32)
        await invited(store, token)
        found = await asyncio.gather(*[redeemed(store, token, key) for _ in range(6)])
        assert len({client.id for client in found}) == 1

    run_on(test)


def test_numbers_have_no_holes_and_are_given_once_under_concurrency(run_on):
    async def test(store, seed):
        async def enrol(place):
            async with store.transaction() as rows:
                return await rows.clients.enrol(
                    seed.population.id, name=f"site-{place}", public_key=secrets.token_bytes(32), at=1.0, **TOLD
                )

        clients = await asyncio.gather(*[enrol(place) for place in range(20)])
        assert sorted(client.number for client in clients) == list(range(20))

    run_on(test)


def test_a_certificate_enrols_a_name_once_and_the_same_key_again_is_the_same_client(run_on):
    async def test(store, seed):
        key = secrets.token_bytes(32)

        async def enrol(name, key):
            async with store.transaction() as rows:
                return await rows.clients.enrol(seed.population.id, name=name, public_key=key, at=1.0, **TOLD)

        first = await enrol("north", key)
        assert await enrol("north", key) == first
        for name, other in (("north", secrets.token_bytes(32)), ("south", key)):
            with pytest.raises(RefusedError) as caught:
                await enrol(name, other)
            assert caught.value.code == "HANSA-ENROL-CERTIFICATE"

    run_on(test)


def test_a_lost_device_enrols_again_as_the_same_client_by_an_invitation_that_names_it(run_on):
    async def test(store, seed):
        token = invitation_of(seed.population)
        await invited(store, token, "north")
        lost = await redeemed(store, token, secrets.token_bytes(32))
        again = invitation_of(seed.population, client=lost.id)
        await invited(store, again)
        key = secrets.token_bytes(32)
        found = await redeemed(store, again, key)
        assert (found.id, found.number, found.public_key) == (lost.id, lost.number, key)
        with pytest.raises(RefusedError, match="--again"):
            await invited(store, invitation_of(seed.population), "north")

    run_on(test)


def test_a_suspended_client_that_enrols_again_has_its_new_key_and_stays_suspended(run_on):
    async def test(store, seed):
        [lost] = await enrolled(store, seed.population, 1)
        async with store.transaction() as rows:
            await rows.clients.set_state(lost.id, "suspended", 3.0, "the device is lost")
        again = invitation_of(seed.population, client=lost.id)
        await invited(store, again)
        key = secrets.token_bytes(32)
        found = await redeemed(store, again, key)
        assert (found.id, found.public_key, found.state) == (lost.id, key, "suspended")

    run_on(test)


def test_a_retired_client_does_not_come_back(run_on):
    async def test(store, seed):
        [client] = await enrolled(store, seed.population, 1)
        token = invitation_of(seed.population, client=client.id)
        await invited(store, token)
        async with store.transaction() as rows:
            await rows.clients.set_state(client.id, "retired", 3.0, "the ward was closed")
        await refused(store, token, secrets.token_bytes(32))
        spare = invitation_of(seed.population, uses=5)
        await invited(store, spare)
        await refused(store, spare, client.public_key)

    run_on(test)


def test_one_device_with_two_tokens_is_one_client(run_on):
    async def test(store, seed):
        tokens = [invitation_of(seed.population), invitation_of(seed.population)]
        for token in tokens:
            await invited(store, token)
        key = secrets.token_bytes(32)
        assert (await redeemed(store, tokens[0], key)).id == (await redeemed(store, tokens[1], key)).id

    run_on(test)


def test_a_name_with_the_form_of_a_given_one_is_no_obstacle(run_on):
    async def test(store, seed):
        await invited(store, invitation_of(seed.population), "client-1")
        token = invitation_of(seed.population)
        await invited(store, token)
        client = await redeemed(store, token, secrets.token_bytes(32))
        assert client.number == 1
        assert client.name.startswith("client-1-")

    run_on(test)


def test_what_a_client_declares_is_kept_once_for_all_that_declare_the_same(run_on):
    async def test(store, seed):
        clients = await enrolled(store, seed.population, 3)
        async with store.transaction() as rows:
            for client in clients:
                told = {"attributes": {"a": 1, "b": [True, None]}, "version": "2.0", "consent": True, "at": 5.0}
                changed = await rows.clients.declare(client.id, **told)
                assert changed.attributes == {"a": 1, "b": [True, None]}
            again = await rows.clients.declare(
                clients[0].id, attributes={"b": [True, None], "a": 1}, version="2.0", consent=True, at=5.0
            )
            assert again.profile == changed.profile
        async with store.reading() as rows:
            profiles = await rows.clients.profiles(seed.population.id)
            assert [each["version"] for each in profiles.values()] == ["2.0"]

    run_on(test)


def test_what_was_declared_later_is_not_undone_by_what_was_signed_before_but_for_a_withdrawal(run_on):
    async def test(store, seed):
        (client,) = await enrolled(store, seed.population, 1)

        async def declared(version, consent, at):
            async with store.transaction() as rows:
                found = await rows.clients.declare(client.id, attributes={}, version=version, consent=consent, at=at)
                assert len(await rows.clients.profiles(seed.population.id)) == 1  # nothing is left of the others
            return found.version, found.consent

        assert await declared("2.0", True, 10.0) == ("2.0", True)
        assert await declared("2.0", False, 20.0) == ("2.0", False)
        assert await declared("2.0", True, 10.0) == ("2.0", False)
        assert await declared("3.0", True, 30.0) == ("3.0", True)
        assert await declared("1.0", False, 20.0) == ("1.0", False)
        assert await declared("3.0", True, 29.0) == ("1.0", False)

    run_on(test)


def test_eligible_are_the_active_clients_with_some_profiles_in_the_order_that_was_asked(run_on):
    async def test(store, seed):
        await enrolled(store, seed.population, 4, attributes={"region": "eu"})
        clients = await enrolled(store, seed.population, 10, attributes={"region": "us"})
        async with store.transaction() as rows:
            await rows.clients.set_state(clients[1].id, "suspended", 2.0, "asked for")
            profiles = await rows.clients.profiles(seed.population.id)
            eu = [key for key, profile in profiles.items() if profile["attributes"] == {"region": "eu"}]
        async with store.reading() as rows:
            clients = rows.clients
            numbers = np.array([3, 1, 12, 99, 0, 3])
            found = await clients.eligible(seed.population.id, numbers, eu)
            assert found.tolist() == [True, False, False, False, True, True]
            assert (await clients.eligible(seed.population.id, numbers, [])).tolist() == [False] * 6
            assert await clients.count_eligible(seed.population.id, eu) == 3
            assert (await clients.all_eligible(seed.population.id, eu)).tolist() == [0, 2, 3]
            wide = np.arange(30_000)
            assert np.flatnonzero(await clients.eligible(seed.population.id, wide, eu)).tolist() == [0, 2, 3]
            named = await clients.numbered(seed.population.id, np.array([5, 77, 0]))
            assert [client.number for client in named] == [5, 0]

    run_on(test)


def test_the_feed_of_changes_tells_replicas_what_to_forget(run_on):
    async def test(store, seed):
        clients = await enrolled(store, seed.population, 3)
        async with store.reading() as rows:
            start, _ = await rows.clients.changes(None)
        async with store.transaction() as rows:
            await rows.clients.set_state(clients[0].id, "suspended", 2.0, "asked for")
            await rows.clients.set_state(clients[0].id, "active", 3.0, "asked for")
            await rows.clients.set_key(clients[2].id, secrets.token_bytes(32))
        async with store.transaction() as rows:
            await rows.clients.set_state(clients[0].id, "active", 3.0, "it is already")
        async with store.reading() as rows:
            last, changed = await rows.clients.changes(start)
            assert set(changed) == {clients[0].id, clients[2].id}
            assert await rows.clients.changes(last) == (last, [])
            told = await rows.events.after(seed.tenant.id, 0, 10)
        assert [(event.kind, event.detail["why"]) for event in told] == [
            ("client.suspended", "asked for"), ("client.active", "asked for")]  # fmt: skip

    run_on(test)


def test_two_clients_cannot_have_one_key(run_on):
    async def test(store, seed):
        first, second = await enrolled(store, seed.population, 2)
        with pytest.raises(StoreConflictError):
            async with store.transaction() as rows:
                await rows.clients.set_key(second.id, first.public_key)

    run_on(test)


def test_a_population_is_changed_by_its_tenant_alone(run_on):
    async def test(store, seed):
        async with store.transaction() as rows:
            await rows.populations.change(replace(seed.population, minimum_version="2.0"))
            other = await rows.tenants.add("somebody else")
            assert (await rows.populations.get(seed.population.id)).minimum_version == "2.0"
        with pytest.raises(StoreConflictError):
            async with store.transaction() as rows:
                await rows.populations.change(replace(seed.population, tenant=other.id, name="mine"))

    run_on(test)
