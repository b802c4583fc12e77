"""The right frames at the right times, for every kind of file and every decoder; every damage is a typed error."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import draw_index, flip_bytes, read_index, truncate, write_audio, write_clip

from videorl.types import Clip, VideoError
from videorl.video.reader import VideoReader, _File
from videorl.video.sampling import plan_seeks

SLIDES = [0.0, 1.0, 1.04, 1.5, 4.0, 4.04, 4.08, 9.0, 9.5, 10.0]  # seconds; 10 / 10 s is 9.5 s wrong for some
LATE = [2 + i / 25 for i in range(50)]
OPEN_GOP = {"x264-params": "open-gop=1:b-adapt=0:scenecut=0"}

# kind -> suffix, arguments of write_clip
KINDS = {
    "constant_rate": (".mp4", {}),
    "ntsc": (".mp4", {"fps": Fraction(30_000, 1001)}),
    "variable_rate": (".mp4", {"times": SLIDES, "num_frames": 10, "bframes": 2}),
    "nonzero_start": (".mp4", {"times": LATE}),
    "nonzero_start_no_edit_list": (".mp4", {"bframes": 3, "container_options": {"use_editlist": "0"}}),
    "bframes": (".mp4", {"bframes": 3}),
    "open_gop": (".mp4", {"bframes": 3, "options": OPEN_GOP}),
    "hevc": (".mp4", {"bframes": 3, "codec": "libx265"}),
    "odd_size": (".mp4", {"size": (97, 65)}),
    "rotated_90": (".mp4", {"rotation": 90}),
    "rotated_180": (".mp4", {"rotation": 180}),
    "rotated_270": (".mp4", {"rotation": 270}),
    "one_frame": (".mp4", {"num_frames": 1}),
    "fragmented": (".mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}}),
    "webm": (".webm", {"codec": "libvpx-vp9", "fps": 30}),
    "av1": (".mp4", {"codec": "libsvtav1"}),
    "matroska": (".mkv", {"bframes": 3}),
    "transport_stream": (".ts", {"bframes": 3}),
    "flash": (".flv", {"bframes": 3}),
    "avi": (".avi", {"codec": "mpeg4", "bframes": 2, "options": {"b": "2M"}}),
}
REFUSED = {("decord", kind) for kind in ("av1", "transport_stream", "flash", "avi")}


@pytest.fixture(scope="module", params=["pyav", "decord", "torchcodec"])
def reader(request, tmp_path_factory, sampling):
    probe = Clip(path=write_clip(tmp_path_factory.mktemp("probe") / "a.mp4", num_frames=1), sampling=sampling)
    with VideoReader(decoder=request.param) as reader:
        try:
            reader.plan(probe)
        except ImportError as error:
            pytest.skip(str(error))
        yield reader


@pytest.fixture(scope="module")
def write_kind(tmp_path_factory):
    folder, written = tmp_path_factory.mktemp("kinds"), {}

    def write(kind):
        if kind not in written:
            suffix, arguments = KINDS[kind]
            written[kind] = write_clip(folder / f"{kind}{suffix}", **arguments)
        arguments = {"num_frames": 50, "fps": 25, **KINDS[kind][1]}
        even = [float(index / arguments["fps"]) for index in range(arguments["num_frames"])]
        return written[kind], arguments.get("times", even)

    return write


@pytest.mark.parametrize("kind", KINDS)
def test_right_frames_at_right_times(reader, write_kind, sampling, kind):
    path, times = write_kind(kind)
    clip = Clip(path=path, sampling=sampling)
    plan = reader.plan(clip)
    if (reader.decoder, kind) in REFUSED:
        with pytest.raises(VideoError, match=r"decord.*use decoder pyav") as caught:
            reader.load(clip)
        assert caught.value.reason == "corrupt"
        return
    frames = reader.load(clip)
    shown = [read_index(pixels) for pixels in frames.pixels]
    assert shown == list(plan.indices)
    assert (shown[0], shown[-1]) == (0, len(times) - 1) if len(times) > 1 else shown == [0]
    seconds = [pts - plan.origin for pts in frames.pts]
    assert seconds == pytest.approx([times[index] - times[0] for index in shown], abs=1e-3)  # Matroska rounds to 1 ms
    width, height = KINDS[kind][1].get("size", (96, 64))
    assert (plan.width > plan.height) == (width > height)


@pytest.mark.parametrize("kind", ["constant_rate", "variable_rate", "odd_size", "rotated_90", "webm"])
def test_decoders_agree_on_pixels(reader, pyav, write_kind, sampling, kind):
    clip = Clip(path=write_kind(kind)[0], sampling=sampling)
    ours, theirs = (r.load(clip) for r in (pyav, reader))
    assert ours.pts == theirs.pts
    difference = np.abs(ours.pixels.astype(int) - theirs.pixels)
    assert difference.mean() < 1 and difference.max() <= 24  # FFmpeg versions differ in upsampling of colour


@pytest.mark.parametrize("span", [(None, None), (9.0, None), (4.3, 9.7), (0.5, 2.0)])
@pytest.mark.parametrize("kind", ["bframes", "open_gop", "hevc", "webm", "transport_stream", "fragmented"])
def test_seeking_lands_on_the_right_frames(pyav, tmp_path_factory, sampling, kind, span):
    suffix, arguments = KINDS[kind]
    path = tmp_path_factory.getbasetemp() / f"long_{kind}{suffix}"
    if not path.exists():
        write_clip(path, **{**arguments, "num_frames": 300})
    few = replace(sampling, fps=None, num_frames=4)
    clip = Clip(path=str(path), sampling=few, start=span[0], end=span[1])
    plan = pyav.plan(clip)
    assert [read_index(pixels) for pixels in pyav.load(clip).pixels] == list(plan.indices)


@pytest.mark.parametrize("codec", ["mpeg4", "libx265"])
def test_a_false_keyframe_is_no_entry(pyav, tmp_path, sampling, codec):
    """The container calls frame 60 a keyframe: seeking there would show frame 66 over nothing."""
    source, path = write_clip(tmp_path / "a.mp4", codec=codec, num_frames=100, gop=250), tmp_path / "b.mp4"
    with av.open(source) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(old.demux(video=0)):
            if packet.size:
                packet.is_keyframe |= number == 60
                packet.stream = stream
                new.mux(packet)
    clip = Clip(path=str(path), sampling=replace(sampling, fps=None, num_frames=4))
    plan = pyav.plan(clip)
    index = pyav._index(_File.stat(path))
    assert 60 * 512 in index.keyframes and plan_seeks(index, plan.indices)[2] == 60 * 512
    assert [read_index(pixels) for pixels in pyav.load(clip).pixels] == [0, 33, 66, 99]


def test_time_is_that_of_the_container_not_index_over_rate(pyav, write_kind, sampling):
    path, _ = write_kind("variable_rate")
    plan = pyav.plan(Clip(path=path, sampling=replace(sampling, fps=None, num_frames=4)))
    assert plan.indices == (0, 4, 7, 9)  # nearest to 0, 3.33, 6.67 and 10 s
    assert plan.pts == pytest.approx((0.0, 4.0, 9.0, 10.0), abs=1e-4)


def test_hidden_frames_of_an_edit_list_are_not_shown(reader, tmp_path, sampling):
    """A cut that keeps the frames from the last keyframe on and hides them, as phones and `ffmpeg -ss -c copy` do."""
    source, cut = write_clip(tmp_path / "a.mp4", gop=12), tmp_path / "b.mp4"
    with av.open(source) as old, av.open(str(cut), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None and packet.pts >= 12 * 512:
                packet.pts -= 17 * 512
                packet.dts -= 17 * 512
                packet.stream = stream
                new.mux(packet)
    plan = reader.plan(Clip(path=str(cut), sampling=sampling))
    if reader.decoder == "decord":  # shows them
        with pytest.raises(VideoError, match=r"0\.000000 s, the decoder says -0\.2"):
            reader.load(plan.clip)
        return
    frames = reader.load(plan.clip)
    assert [read_index(pixels) for pixels in frames.pixels] == [17 + index for index in plan.indices]
    assert plan.origin == 0.0 and plan.duration == pytest.approx(33 / 25, abs=1e-9)


def test_colours_follow_the_matrix_of_the_file(pyav, tmp_path, sampling):
    path = str(tmp_path / "red.mp4")
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.colorspace = 1  # BT.709
        red = np.zeros((64, 64, 3), np.uint8)
        red[:] = (200, 30, 40)
        frame = av.VideoFrame.from_ndarray(red, "rgb24").reformat(format="yuv420p", dst_colorspace="ITU709")
        for packet in (*stream.encode(frame), *stream.encode()):
            container.mux(packet)
    pixels = pyav.load(Clip(path=path, sampling=sampling)).pixels
    assert np.abs(pixels.reshape(-1, 3).astype(int) - (200, 30, 40)).max() <= 4  # 8-bit YUV


def damage(tmp_path, name):
    """Write the damaged file of that name and return its path."""
    path = tmp_path / name
    match name:
        case "missing.mp4":
            return str(path)
        case "zero_length.mp4":
            path.touch()
        case "text.mp4":
            path.write_text("Frames: none. " * 500)
        case "playlist.mp4":  # FFmpeg recognises it by content and would read the other file
            write_clip(tmp_path / "other.mp4")
            path.write_text("ffconcat version 1.0\nfile other.mp4\n")
        case "folder.mp4":
            path.mkdir()
        case "audio_only.mp4":
            write_audio(path)
        case "cut_index_first.mp4":
            truncate(write_clip(path, container_options={"movflags": "faststart"}), 0.7)
        case "cut_index_last.mp4":
            truncate(write_clip(path), 0.7)
        case "cut_fragments.mp4":
            truncate(write_clip(path, container_options={"movflags": "frag_keyframe+empty_moov"}), 0.7)
        case "cut.webm":
            truncate(write_clip(path, codec="libvpx-vp9"), 0.7)
        case "cut.mkv":
            truncate(write_clip(path), 0.7)
        case "cut.avi":
            truncate(write_clip(path, codec="mpeg4"), 0.7)
        case "cut.flv":
            truncate(write_clip(path), 0.7)
        case "cut_live.webm":  # whose header does not know how long it will be
            truncate(write_clip(path, codec="libvpx-vp9", container_options={"live": "1"}), 0.7)
        case "flipped_block.webm":  # the demuxer goes on at the next cluster
            flip_bytes(write_clip(path, codec="libvpx-vp9", num_frames=200), 0.5)
        case "flipped_index.mp4":
            flip_bytes(write_clip(path, container_options={"movflags": "faststart"}), 0.02, 400)
        case "reordered.avi":  # stores no presentation times, so frames would come in the wrong order
            write_clip(path, bframes=2)
    return str(path)


PLAN_ERRORS = {
    "missing.mp4": "missing",
    "zero_length.mp4": "empty",
    "text.mp4": "not_a_video",
    "playlist.mp4": "not_a_video",
    "folder.mp4": "not_a_video",
    "audio_only.mp4": "no_video_stream",
    "cut_index_first.mp4": "truncated",
    "cut_index_last.mp4": "truncated",
    "cut_fragments.mp4": "truncated",
    "cut.webm": "truncated",
    "cut.mkv": "truncated",
    "cut.avi": "truncated",
    "cut.flv": "truncated",
    "cut_live.webm": "corrupt",
    "flipped_block.webm": "corrupt",
    "flipped_index.mp4": "corrupt",
}


@pytest.mark.parametrize("name", PLAN_ERRORS)
def test_damage_is_found_before_decoding(reader, tmp_path, sampling, name):
    path = damage(tmp_path, name)
    decodes = reader.decodes
    for call in (reader.plan, reader.load):
        with pytest.raises(VideoError) as caught:
            call(Clip(path=path, sampling=sampling))
        assert caught.value.reason == PLAN_ERRORS[name], str(caught.value)
        assert path in str(caught.value)
    assert reader.decodes == decodes


@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.7])
def test_flipped_bytes_stop_strict_decoding(pyav, tmp_path, sampling, fraction):
    path = flip_bytes(write_clip(tmp_path / "a.mp4", num_frames=100), fraction, 600)
    clip = Clip(path=path, sampling=sampling)
    assert pyav.plan(clip).indices[-1] == 99  # header and packets are whole
    with pytest.raises(VideoError) as caught:
        pyav.load(clip)
    assert caught.value.reason == "corrupt" and path in str(caught.value)


def test_a_flip_that_still_decodes_is_found_by_its_hash(reader, tmp_path, sampling):
    path = write_clip(tmp_path / "a.mp4")
    whole = reader.plan(Clip(path=path, sampling=sampling))
    content = Path(path).read_bytes()
    Path(path).write_bytes(content.replace(b"x264 - core", b"x265 - core"))  # the encoder's signature
    clip = Clip(path=path, sampling=sampling, sha256=whole.media_sha256)
    for call in (reader.plan, reader.load):
        with pytest.raises(VideoError, match=whole.media_sha256) as caught:
            call(clip)
        assert caught.value.reason == "digest_mismatch"
    unchecked = replace(clip, sha256=None)
    assert reader.plan(unchecked).media_sha256 != whole.media_sha256
    assert read_index(reader.load(unchecked).pixels[-1]) == 49


def test_frames_in_the_wrong_order_are_refused(pyav, tmp_path, sampling):
    with pytest.raises(VideoError) as caught:
        pyav.load(Clip(path=damage(tmp_path, "reordered.avi"), sampling=sampling))
    assert caught.value.reason == "corrupt"


def test_a_stream_that_changes_size_is_refused(pyav, tmp_path, sampling):
    path = str(tmp_path / "a.webm")
    with av.open(path, "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for start, side in ((0, 64), (25, 128)):
            encoder = av.CodecContext.create("libvpx-vp9", "w")
            encoder.width, encoder.height, encoder.pix_fmt = side, side, "yuv420p"
            encoder.time_base = Fraction(1, 25)
            for number in range(start, start + 25):
                frame = av.VideoFrame.from_ndarray(draw_index(number, side, side), "rgb24")
                frame.pts, frame.time_base = number, encoder.time_base
                packets = encoder.encode(frame)
                if number == start + 24:
                    packets += encoder.encode()
                for packet in packets:
                    packet.stream = stream
                    container.mux(packet)
    with pytest.raises(VideoError, match=r"1\.080000 s has 128x128 pixels, the header says 64x64") as caught:
        pyav.load(Clip(path=path, sampling=sampling))
    assert caught.value.reason == "corrupt"
