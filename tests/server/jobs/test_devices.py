"""Jobs on several devices: which device gets what, and what the death of a worker changes."""

from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from fakes.devices import SimulatedDevice, play_on_devices
from fakes.loop import MANIFEST
from fakes.worker_link import job
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.jobs.devices.device_queue import HOPELESS_STARTS, devices_in_use
from server.jobs.devices.worker_losses import MAX_LOSSES
from server.jobs.embedded import EmbeddedJobs
from server.jobs.job import Job, JobState
from server.worker.messages import Alive, LoraSwitched

MOST = 5  # images of a job
SUBMIT = st.tuples(
    st.just("submit"),
    st.integers(1, MOST),  # images
    st.sampled_from([(64, 64), (128, 64), (256, 256)]),
    st.sampled_from([None, None, "a", "b"]),  # LoRA
    st.sampled_from(["anne", "bob", "carl"]),
    st.booleans(),  # guided
    st.sampled_from([False] * 7 + [True]),  # poison
)
DEVICE = st.integers(0, 7)
ACTION = st.one_of(
    SUBMIT,
    st.tuples(st.just("step"), DEVICE, st.integers(0, 7)),
    st.tuples(st.just("step"), DEVICE, st.integers(0, 7)),
    st.tuples(st.just("run"), st.integers(1, 12)),
    st.tuples(st.just("die"), DEVICE),
    st.tuples(st.just("start"), DEVICE),
    st.tuples(st.just("fail"), DEVICE),
    st.tuples(st.just("rest over"), DEVICE),
    st.tuples(st.just("cancel"), st.integers(0, 31)),
)


class Play:
    """A service with simulated devices, and what must hold after each action."""

    def __init__(self, jobs: EmbeddedJobs, devices: list[SimulatedDevice], poison: set[str]) -> None:
        self.jobs, self.devices, self.poison = jobs, devices, poison
        self.names: list[str] = []
        self.deaths: Counter[str] = Counter()  # of workers that had begun a job, by job
        self.ends: Counter[str] = Counter()
        on_ended = jobs._tracker.on_ended

        def count(live: object) -> None:
            self.ends[live.job.id] += 1  # type: ignore[attr-defined]
            on_ended(live)  # type: ignore[arg-type]

        jobs._tracker.on_ended = count  # type: ignore[assignment]

    async def do(self, action: tuple[object, ...]) -> None:
        match action:
            case ("submit", images, (width, height), lora, client, guided, poison):
                name = str(len(self.names))
                self.names.append(name)
                if poison:
                    self.poison.add(name)
                one = job(name, n=images, client=client)
                request = replace(
                    one.request, width=width, height=height, lora=lora, guidance_scale=4.0 if guided else 0.0
                )
                await self.jobs.submit(replace(one, request=request))
            case ("step", device, choice):
                self.step(self.device(device), choice)
            case ("run", steps):
                for number in range(steps):
                    for device in self.devices:
                        self.step(device, number)
            case ("die", number) if (device := self.device(number)).is_ready:
                self.count_deaths(device)
                device.die()
            case ("start", number) if not (device := self.device(number)).is_ready:
                device.start()
            case ("fail", number) if not (device := self.device(number)).is_ready and self.can_fail(device):
                device.fail_start()
            case ("rest over", number) if (device := self.device(number)).queue.losses.is_resting:
                device.queue.losses.stop()
                device.queue.losses._end_rest()
            case ("cancel", number) if self.names:
                await self.jobs.cancel(self.names[number % len(self.names)])
        self.check()

    def device(self, number: int) -> SimulatedDevice:
        return self.devices[number % len(self.devices)]

    def can_fail(self, device: SimulatedDevice) -> bool:
        """Return True if a device can fail to start once more without all being hopeless."""
        return any(other is not device and other.failed_starts < HOPELESS_STARTS for other in self.devices)

    def step(self, device: SimulatedDevice, choice: int) -> None:
        if device.is_ready and device.images:
            key = [*device.images][choice % len(device.images)]
            if device.images[key] and key.rpartition(":")[0] in self.poison:
                self.count_deaths(device)
        device.step(choice)

    def count_deaths(self, device: SimulatedDevice) -> None:
        only_one = {key.rpartition(":")[0] for key in device.images}
        self.deaths.update(device.begun or (only_one if len(only_one) == 1 else ()))

    def check(self) -> None:
        assert not [name for name, times in self.ends.items() if times > 1], "a job ended twice"
        sent = Counter(key for device in self.devices for key in device.images)
        assert not [key for key, times in sent.items() if times > 1], "two workers have one image"
        for device in self.devices:
            queue = device.queue
            has = {f"{live.job.id}:{index}" for live, indices in queue.images.items() for index in indices}
            assert has == set(device.images)
            slots = {live: len(indices) * live.slots(MANIFEST) for live, indices in queue.images.items()}
            is_suspect = any(live in self.jobs.worker_queue._replays.suspects for live in queue.images)
            if len(self.devices) > 1 and not is_suspect:
                assert sum(slots.values()) <= device.window or len(device.images) == 1, "more than the window"
        self.check_suspects()
        self.check_nobody_idles()

    def check_suspects(self) -> None:
        for device in self.devices:
            suspect = device.queue.suspect
            assert suspect is None or {*device.queue.images} == {suspect}, "a suspect is not alone"

    def check_nobody_idles(self) -> None:
        """Check that a device in use has work while jobs wait, unless it is kept for a suspect or a LoRA matters."""
        worker_queue = self.jobs.worker_queue
        waiting = [live for live in self.jobs._tracker.unfinished if live.is_waiting]
        if any(live.job.request.lora for live in self.jobs._tracker.unfinished):
            return
        for queue in devices_in_use(worker_queue.queues):
            if queue is not worker_queue._replays._reserved and not queue.images and queue.lora is None:
                assert not [live for live in waiting if live not in worker_queue._replays.suspects], "a device idles"

    async def finish(self) -> None:
        """Let all workers go on until nothing is left, and check what became of each job."""
        for _ in range(2000):
            for device in self.devices:
                if not device.is_ready:
                    device.start()
            if True not in [self.step_and_check(device) for device in self.devices]:
                break
        assert not list(self.jobs._tracker.unfinished), "jobs are left"
        for name in self.names:
            ended = await self.jobs.get(name)
            assert ended is not None and self.ends[name] == 1
            self.check_end(ended)
            if ended.state is JobState.DONE:
                made = Counter(key for device in self.devices for key in device.generated)
                assert all(made[f"{name}:{index}"] == 1 for index in range(ended.image_count)), "generated twice"

    def step_and_check(self, device: SimulatedDevice) -> bool:
        has_work = device.is_ready and bool(device.images)
        self.step(device, 0)
        self.check()
        return has_work

    def check_end(self, ended: Job) -> None:
        if ended.state is JobState.FAILED:
            assert ended.error is not None
            assert ended.error.code == "worker_lost" and ended.attempts == 2
            assert self.deaths[ended.id] >= 2, "it failed, but two workers did not die of it"
        elif ended.state is JobState.DONE:
            assert ended.id not in self.poison and self.deaths[ended.id] <= 1


@pytest.mark.slow
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.booleans(),
    st.lists(SUBMIT, min_size=2, max_size=8),
    st.lists(ACTION, min_size=5, max_size=40),
)
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_job_ends_once_whatever_happens_to_workers(
    windows: list[int], has_loras: bool, submits: list[tuple[object, ...]], actions: list[tuple[object, ...]]
) -> None:
    poison: set[str] = set()

    async def story(jobs: EmbeddedJobs, devices: list[SimulatedDevice]) -> None:
        play = Play(jobs, devices, poison)
        for action in (*submits, *actions):
            is_plain = action[0] == "submit" and not has_loras
            await play.do((*action[:3], None, *action[4:]) if is_plain else action)
        await play.finish()

    play_on_devices(story, tuple(windows), poison)


def named(name: str, n: int = 1, client: str = "", **request: object) -> Job:
    one = job(name, n=n, client=client)
    return replace(one, request=replace(one.request, **request))


def has(device: SimulatedDevice) -> list[str]:
    return sorted(device.images)


def step_each(devices: list[SimulatedDevice]) -> bool:
    """Begin or finish an image on each device. Return False if no device has one."""
    return True in [device.step() for device in devices]


def finish(device: SimulatedDevice, key: str) -> None:
    """Begin an image, unless it has begun, and finish it."""
    while key in device.images:
        device.step([*device.images].index(key))


def test_images_of_one_job_are_spread_over_idle_devices() -> None:
    async def story(jobs: EmbeddedJobs, devices: list[SimulatedDevice]) -> None:
        first, second = devices
        await jobs.submit(job("a", n=4))
        assert (len(first.images), len(second.images)) == (2, 2)
        for device in devices:
            while device.step():
                pass
        assert (await jobs.get("a")).state is JobState.DONE

    play_on_devices(story, (4, 4))


def test_waiting_images_go_to_the_device_that_is_free_first() -> None:
    async def story(jobs: EmbeddedJobs, devices: list[SimulatedDevice]) -> None:
        slow, fast = devices
        for name in "abcdefgh":
            await jobs.submit(job(name))
        assert has(slow) == ["a:0", "c:0"] and has(fast) == ["b:0", "d:0"]
        for _ in range(8):  # two calls for each image
            fast.step()
        assert fast.generated == ["b:0", "d:0", "e:0", "f:0"] and has(slow) == ["a:0", "c:0"]

    play_on_devices(story)


def test_client_with_one_job_does_not_wait_for_the_queue_of_another() -> None:
    async def story(jobs: EmbeddedJobs, devices: list[SimulatedDevice]) -> None:
        for number in range(40):
            await jobs.submit(job(f"flood{number}", client="flood"))
        await jobs.submit(job("single", client="single"))
        finish(devices[1], has(devices[1])[0])
        assert "single:0" in devices[1].images

    play_on_devices(story)


def test_image_waits_for_the_device_with_its_lora_if_that_is_sooner() -> None:
    async def story(jobs: EmbeddedJobs, devices: list[SimulatedDevice]) -> None:
        plain, styled = devices
        await jobs.submit(named("p"))
        await jobs.submit(named("s", lora="a"))
        assert (has(plain), has(styled)) == (["p:0"], ["s:0"])
        finish(plain, "p:0")  # which takes a second
        finish(styled, "s:0")
        plain.queue.on_message(LoraSwitched(5.0))
        await jobs.submit(named("s2", lora="a"))
        await jobs.submit(named("s3", lora="a"))
        assert (has(plain), has(styled)) == ([], ["s2:0", "s3:0"]), "two seconds of images, and no change of LoRAs"
        await jobs.submit(named("s4", lora="a"))
        assert has(plain) == [], "it waits, though that device is free"
        await jobs.submit(named("p2"))
        assert has(plain) == ["p2:0"], "others do not wait with it"
        finish(styled, "s2:0")
        assert has(styled) == ["s3:0", "s4:0"]

    play_on_devices(story)


def test_guided_images_take_two_slots_and_are_not_overtaken_for_ever() -> None:
    async def story(jobs: EmbeddedJobs, devices: list[SimulatedDevice]) -> None:
        for name in "abcd":
            await jobs.submit(named(name))
        await jobs.submit(named("guided", guidance_scale=4.0))
        for name in "efgh":
            await jobs.submit(named(name, client="other"))
        while "guided:0" not in devices[0].images:
            assert devices[0].step(), "it never got two slots"
        assert len(devices[0].images) == 1

    play_on_devices(story, (2, 2))


def test_jobs_of_a_dead_worker_are_replayed_alone_on_another_device_while_its_queue_waits() -> None:
    async def story(jobs: EmbeddedJobs, devices: list[SimulatedDevice]) -> None:
        first, second = devices
        for name in "abcdefgh":
            await jobs.submit(job(name))
        assert (has(first), has(second)) == (["a:0", "c:0"], ["b:0", "d:0"])
        first.step(0)  # "a" begins
        first.die()
        assert has(second) == ["b:0", "d:0"]
        first.start()
        assert has(first) == ["c:0", "e:0"], "the others go on"
        finish(second, "b:0")
        assert has(second) == ["d:0"], "it takes nothing more until it is empty"
        finish(second, "d:0")
        assert has(second) == ["a:0"]
        finish(first, "c:0")
        assert has(second) == ["a:0"] and has(first) == ["e:0", "f:0"]
        finish(second, "a:0")
        assert has(second) == ["g:0", "h:0"]

    play_on_devices(story)


def test_job_that_kills_two_workers_fails_by_name_and_costs_no_other_job_an_attempt_more() -> None:
    async def story(jobs: EmbeddedJobs, devices: list[SimulatedDevice]) -> None:
        for name in ("poison", "b", "c", "d"):
            await jobs.submit(job(name))
        devices[0].step(0)
        devices[0].step(0)
        devices[0].start()
        while step_each(devices):
            for device in devices:
                if not device.is_ready:
                    device.start()
        failed = await jobs.get("poison")
        assert failed.error.code == "worker_lost" and failed.attempts == 2
        assert [(await jobs.get(name)).attempts for name in "bcd"] == [1, 1, 1]
        assert [device.queue.losses.count for device in devices] == [0, 0], "the job was to blame, not the devices"

    play_on_devices(story, poison={"poison"})


def test_deaths_that_one_job_causes_count_against_no_device() -> None:
    async def story(jobs: EmbeddedJobs, devices: list[SimulatedDevice]) -> None:
        await jobs.submit(job("poison"))
        losses = []
        for device in devices:
            device.step()
            device.step()
            losses.append([each.queue.losses.count for each in devices])
        assert losses == [[1, 0], [0, 0]]

    play_on_devices(story, poison={"poison"})


def test_job_on_two_devices_goes_on_with_its_other_images_if_one_worker_dies() -> None:
    async def story(jobs: EmbeddedJobs, devices: list[SimulatedDevice]) -> None:
        first, second = devices
        await jobs.submit(job("a", n=2))
        first.step()
        second.step()
        first.die()
        assert has(second) == ["a:1"]
        second.step()
        assert has(second) == ["a:0"]
        second.step()
        second.step()
        ended = await jobs.get("a")
        assert (ended.state, ended.attempts) == (JobState.DONE, 2)

    play_on_devices(story)


def test_cancelled_job_stops_on_all_devices() -> None:
    async def story(jobs: EmbeddedJobs, devices: list[SimulatedDevice]) -> None:
        await jobs.submit(job("a", n=3))
        await jobs.submit(job("b", n=3))
        assert await jobs.cancel("a")
        assert sorted(has(devices[0]) + has(devices[1])) == ["b:0", "b:1", "b:2"]

    play_on_devices(story)


def test_device_whose_workers_keep_dying_rests_and_comes_back_with_one_image(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def story(jobs: EmbeddedJobs, devices: list[SimulatedDevice]) -> None:
        broken, good = devices
        for number in range(12):
            await jobs.submit(job(str(number)))
        for _ in range(MAX_LOSSES):
            while not broken.images:
                good.step()
            broken.step()
            broken.die()
            broken.start()
        assert broken.queue.losses.is_resting and not broken.images
        assert [status.is_ready for status in jobs.devices()] == [False, True] and jobs.is_ready
        assert "cuda:0 is out of use for 60 s" in caplog.text
        good.die()
        assert len(broken.images) == 1, "it is the only one, and is tried with one image"
        good.start()
        broken.queue.losses.stop()
        broken.queue.losses._end_rest()
        while jobs.worker_queue._replays.suspects:
            assert step_each(devices)
        while len(broken.images) == 1:
            broken.step()
        assert len(broken.images) == 2 and broken.queue.losses.count == 0

    play_on_devices(story)


def test_device_that_never_starts_is_named_and_the_others_take_its_jobs(caplog: pytest.LogCaptureFixture) -> None:
    async def story(jobs: EmbeddedJobs, devices: list[SimulatedDevice]) -> None:
        broken, good = devices
        broken.die()
        for _ in range(HOPELESS_STARTS):
            broken.fail_start()
        await jobs.submit(job("a", n=4))
        while good.step():
            pass
        assert (await jobs.get("a")).state is JobState.DONE
        assert jobs.status == "ok" and jobs.last_failure == "cuda:0: no device"
        assert "cuda:0 is out of use, since its worker did not start 5 times in a row (no device)" in caplog.text
        await jobs.submit(job("b"))
        good.die()
        for _ in range(HOPELESS_STARTS):
            good.fail_start()
        assert jobs.status == "failing" and (await jobs.get("b")).error.code == "worker_unavailable"

    play_on_devices(story)


def test_device_that_hangs_gets_no_more_images_while_others_are_faster() -> None:
    async def story(jobs: EmbeddedJobs, devices: list[SimulatedDevice]) -> None:
        hung, good = devices
        await jobs.submit(job("a"))
        hung.step()
        hung.queue.on_message(Alive(9.0))
        for name in "bcdef":
            await jobs.submit(job(name))
        assert has(hung) == ["a:0"] and len(good.images) == 5
        hung.die()
        while good.step():
            pass
        assert [(await jobs.get(name)).state for name in "abcdef"] == [JobState.DONE] * 6

    play_on_devices(story, (6, 6))


def test_room_is_what_the_devices_can_take_now_and_its_growth_is_told() -> None:
    async def story(jobs: EmbeddedJobs, devices: list[SimulatedDevice]) -> None:
        queue, told = jobs.worker_queue, []
        queue.on_room = lambda: told.append(queue.room)
        queue.send_pending()
        assert told.pop() == queue.room == 6
        await jobs.submit(job("a", n=4))
        await jobs.submit(named("guided", guidance_scale=4.0))
        assert queue.room == 0 and not told
        finish(devices[0], has(devices[0])[0])
        assert told == [1]
        devices[1].die()
        told.clear()
        devices[1].start()
        assert told and told[-1] == queue.room

    play_on_devices(story, (3, 3))


def test_device_is_idle_until_it_has_an_image() -> None:
    async def story(jobs: EmbeddedJobs, devices: list[SimulatedDevice]) -> None:
        queue, idle = jobs.worker_queue, []
        for name in "ab":
            idle.append(queue.has_idle_device)
            await jobs.submit(job(name))
        idle.append(queue.has_idle_device)
        finish(devices[0], has(devices[0])[0])
        assert [*idle, queue.has_idle_device] == [True, True, False, True]

    play_on_devices(story, (3, 3))


def test_estimates_count_the_devices_that_take_jobs() -> None:
    async def story(jobs: EmbeddedJobs, devices: list[SimulatedDevice]) -> None:
        await jobs.submit(job("first"))
        finish(devices[0], "first:0")  # which takes a second
        for name in "abcd":
            await jobs.submit(job(name))
        etas = [(await jobs.progress(await jobs.get(name))).eta for name in "abcd"]
        assert etas == pytest.approx([1, 1, 2, 2])
        devices[1].die()
        etas = [(await jobs.progress(await jobs.get(name))).eta for name in "abcd"]
        assert etas == pytest.approx([1, 2, 3, 4])
        await jobs.submit(named("n", n=2))
        devices[1].start()
        assert (await jobs.progress(await jobs.get("n"))).eta == pytest.approx(3)

    play_on_devices(story)


@given(
    st.lists(st.integers(1, 3), min_size=2, max_size=4),
    st.lists(st.tuples(st.integers(1, MOST), st.sampled_from([64, 128])), min_size=20, max_size=20),
    st.randoms(use_true_random=False),
)
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_two_busy_clients_get_equal_shares_of_all_devices(
    windows: list[int], sizes: list[tuple[int, int]], chance: Random
) -> None:
    """One has queued everything before the other comes, and devices have different speeds."""

    async def story(jobs: EmbeddedJobs, devices: list[SimulatedDevice]) -> None:
        pixels: dict[str, int] = {}
        for client in ("first", "second"):
            for number, (images, side) in enumerate(sizes):
                await jobs.submit(named(f"{client}-{number}", images, client, width=side, height=side))
                pixels[f"{client}-{number}"] = side * side
        made: Counter[str] = Counter()
        largest = max(pixels.values())
        while {live.job.client for live in jobs._tracker.unfinished.waiting} == {"first", "second"}:
            device = chance.choice(devices)
            before = len(device.generated)
            device.step(chance.randrange(8))
            for key in device.generated[before:]:
                name = key.rpartition(":")[0]
                made[name.partition("-")[0]] += pixels[name]
            ahead = made["first"] - made["second"]
            assert abs(ahead) <= largest * (sum(windows) + 2 * MOST), "more than what devices and one job hold"

    play_on_devices(story, tuple(windows))
