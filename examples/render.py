"""Renders the Mandelbrot set: a map over bands of the picture, put together here and written as a PNG.

farcall run examples/render.py --width 1600 --detail 500 --out mandelbrot.png
"""

import struct
import zlib
from pathlib import Path

import farcall

app = farcall.App("render")

BAND = 20  # rows of the picture that one call renders


@app.function(max_containers=4)
def render(top: int, width: int, height: int, detail: int) -> bytes:
    """Rows `top` to `top + BAND` of the picture, one byte of grey for each pixel."""
    pixels = bytearray()
    for y in range(top, min(top + BAND, height)):
        for x in range(width):
            point = complex(3.0 * x / width - 2.2, 2.4 * y / height - 1.2)
            z, step = 0j, 0
            while step < detail and z.real * z.real + z.imag * z.imag < 4:
                z = z * z + point
                step += 1
            pixels.append(0 if step == detail else 255 - 200 * step // detail)
    return bytes(pixels)


def png(width: int, height: int, pixels: bytes) -> bytes:
    """A grey picture of 8 bits a pixel in the PNG format (W3C, third edition)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + pixels[start : start + width] for start in range(0, len(pixels), width))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@app.local_entrypoint()
def main(width: int = 300, detail: int = 60, out: Path = Path("mandelbrot.png")) -> None:
    height = width * 4 // 5
    tops = range(0, height, BAND)
    bands = render.map(tops, kwargs={"width": width, "height": height, "detail": detail})
    out.write_bytes(png(width, height, b"".join(bands)))
    print(f"{out}: {width} by {height} pixels, rendered in {len(tops)} bands")
