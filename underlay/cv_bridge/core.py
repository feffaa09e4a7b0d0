"""CvBridge."""

import array
import re
import sys
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from sensor_msgs.msg import CompressedImage, Image

Array = npt.NDArray[Any]

# Colour encodings of sensor_msgs: what the channels are, their number, their type.
COLOURS: dict[str, tuple[str, int, str]] = {
    name + bits: (kind, channels, "uint" + bits)
    for bits in ("8", "16")
    for name, kind, channels in (
        ("mono", "GRAY", 1),
        ("rgb", "RGB", 3),
        ("bgr", "BGR", 3),
        ("rgba", "RGBA", 4),
        ("bgra", "BGRA", 4),
        # OpenCV names a mosaic by the second row's second and third pixel, ROS by the first four.
        ("bayer_rggb", "BayerBG", 1),
        ("bayer_bggr", "BayerRG", 1),
        ("bayer_gbrg", "BayerGR", 1),
        ("bayer_grbg", "BayerGB", 1),
    )
}
COLOURS |= {
    "yuv422": ("UYVY", 2, "uint8"),
    "yuv422_yuy2": ("YUY2", 2, "uint8"),
    "uyvy": ("UYVY", 2, "uint8"),
    "yuyv": ("YUY2", 2, "uint8"),
}
TYPES = {
    "8U": "uint8",
    "8S": "int8",
    "16U": "uint16",
    "16S": "int16",
    "32S": "int32",
    "32F": "float32",
    "64F": "float64",
}
NAMES = {dtype: name for name, dtype in TYPES.items()}
DEPTHS = {dtype: getattr(cv2, f"CV_{name}") for name, dtype in TYPES.items()}


class CvBridgeError(TypeError):
    """An image cannot be converted; the message says why."""


class CvBridge:
    """Converts sensor_msgs/Image and CompressedImage to numpy arrays as OpenCV has them, and back.

    Arrays are (H, W) for one channel and (H, W, C) for more.
    """

    def imgmsg_to_cv2(self, img_msg: Image, desired_encoding: str = "passthrough") -> Array:
        """The image of a message, in native byte order.

        Rows may be padded (any `step`), either endianness is read. Where nothing is to be converted the array shares
        its memory with the message. `desired_encoding` converts colours and depths; 8 and 16 bits are scaled to each
        other's range.

        Raises CvBridgeError for an unknown encoding, too little data, or a conversion that makes no sense.
        """
        dtype_name, channels = self.encoding_to_dtype_with_channels(img_msg.encoding)
        dtype = np.dtype(dtype_name).newbyteorder(">" if img_msg.is_bigendian else "<")
        height, width, step = img_msg.height, img_msg.width, img_msg.step
        row = width * channels * dtype.itemsize
        if step < row:
            raise CvBridgeError(
                f"step is {step} bytes, but {width} pixels of {img_msg.encoding} take {row}: the sender's step is wrong"
            )
        data = img_msg.data
        buffer = np.asarray(data, dtype=np.uint8) if isinstance(data, list) else np.frombuffer(data, dtype=np.uint8)
        # The last row may come without its padding.
        if height and buffer.size < step * (height - 1) + row:
            raise CvBridgeError(
                f"data has {buffer.size} bytes, but {height} rows of {step} take {height * step}: the image is cut off"
            )
        strides = (step, channels * dtype.itemsize, dtype.itemsize)
        image: Array = np.ndarray((height, width, channels), dtype, buffer, strides=strides)
        image = np.ascontiguousarray(image if channels > 1 else image[:, :, 0])
        if not dtype.isnative:
            image = image.astype(dtype.newbyteorder("="))
        if desired_encoding == "passthrough":
            return image
        return self._convert(image, img_msg.encoding, desired_encoding)

    def cv2_to_imgmsg(self, cvim: Array, encoding: str = "passthrough", header: Any = None) -> Image:
        """A message with this image; with "passthrough" the encoding is that of the array's type, such as 8UC3.

        Raises CvBridgeError when the array's type and channels are not those of `encoding`, TypeError for no array.
        """
        if not isinstance(cvim, np.ndarray):
            raise TypeError(f"the image is a {type(cvim).__name__}, not a numpy array")
        if cvim.ndim not in (2, 3):
            raise CvBridgeError(f"an image has shape (H, W) or (H, W, C), this one {cvim.shape}")
        channels = 1 if cvim.ndim == 2 else cvim.shape[2]
        own = self.dtype_with_channels_to_cvtype2(cvim.dtype, channels)
        if encoding != "passthrough":
            dtype, wanted = self.encoding_to_dtype_with_channels(encoding)
            if (dtype, wanted) != (cvim.dtype.name, channels):
                raise CvBridgeError(f"encoding specified as {encoding}, but image has incompatible type {own}")
        message = Image(height=cvim.shape[0], width=cvim.shape[1])
        if header is not None:
            message.header = header
        message.encoding = own if encoding == "passthrough" else encoding
        message.is_bigendian = int(cvim.dtype.itemsize > 1 and not _is_little(cvim.dtype))
        message.step = cvim.shape[1] * channels * cvim.dtype.itemsize
        # An array of bytes is taken as it is; bytes or a list would be checked item by item.
        message.data = _bytes(cvim)
        return message

    def compressed_imgmsg_to_cv2(self, cmprs_img_msg: CompressedImage, desired_encoding: str = "passthrough") -> Array:
        """The image of a compressed message as OpenCV reads it (colour is BGR), or converted from there.

        Raises CvBridgeError when the data is no image or the conversion makes no sense.
        """
        data = np.frombuffer(cmprs_img_msg.data, dtype=np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
        if image is None:
            raise CvBridgeError(f"{data.size} bytes of format {cmprs_img_msg.format!r} are no image OpenCV can read")
        if desired_encoding == "passthrough":
            return image
        bits = 8 * image.dtype.itemsize
        name = {1: "mono", 3: "bgr", 4: "bgra"}[1 if image.ndim == 2 else image.shape[2]]
        return self._convert(image, f"{name}{bits}", desired_encoding)

    def cv2_to_compressed_imgmsg(self, cvim: Array, dst_format: str = "jpg") -> CompressedImage:
        """A compressed message with this image; `dst_format` is a file ending OpenCV writes, such as jpg or png.

        Raises CvBridgeError when OpenCV cannot write the image in this format, TypeError for no array.
        """
        if not isinstance(cvim, np.ndarray):
            raise TypeError(f"the image is a {type(cvim).__name__}, not a numpy array")
        try:
            done, data = cv2.imencode("." + dst_format, cvim)
        except cv2.error as error:
            raise CvBridgeError(f"OpenCV cannot write this image as {dst_format}: {error.err}") from error
        if not done:
            raise CvBridgeError(f"OpenCV cannot write this image as {dst_format}")
        return CompressedImage(format=dst_format, data=_bytes(data))

    # -- encodings and types, as upstream names them --

    def encoding_to_dtype_with_channels(self, encoding: str) -> tuple[str, int]:
        """The numpy type and number of channels of an encoding: ("uint8", 3) for bgr8, ("float32", 2) for 32FC2."""
        if encoding in COLOURS:
            _, channels, dtype = COLOURS[encoding]
            return dtype, channels
        match = re.fullmatch(r"(8U|8S|16U|16S|32S|32F|64F)(?:C([1-9]\d*))?", encoding)
        if match is None:
            raise CvBridgeError(f"Unrecognized image encoding [{encoding}]")
        return TYPES[match[1]], int(match[2] or 1)

    def encoding_to_cvtype2(self, encoding: str) -> int:
        """OpenCV's number for the type of an encoding."""
        dtype, channels = self.encoding_to_dtype_with_channels(encoding)
        return int(cv2.CV_MAKETYPE(DEPTHS[dtype], channels))

    def dtype_with_channels_to_cvtype2(self, dtype: Any, n_channels: int) -> str:
        """The name, like 8UC3, of a numpy type with so many channels."""
        name = np.dtype(dtype).name
        if name not in NAMES:
            raise CvBridgeError(f"OpenCV has no images of type {name}")
        return f"{NAMES[name]}C{n_channels}"

    def _convert(self, image: Array, source: str, target: str) -> Array:
        """`image` of encoding `source` as `target`; the source's type and channels are those of the image."""
        if source == target:
            return image
        dtype, channels = self.encoding_to_dtype_with_channels(target)
        own = 1 if image.ndim == 2 else image.shape[2]
        if source in COLOURS and target in COLOURS:
            kind, wanted = COLOURS[source][0], COLOURS[target][0]
            if kind != wanted:
                suffix = f"_{kind}" if kind in ("UYVY", "YUY2") else ""
                code = getattr(cv2, f"COLOR_{'YUV' if suffix else kind}2{wanted}{suffix}", None)
                if code is None:
                    raise CvBridgeError(f"Unsupported conversion from [{source}] to [{target}]")
                image = cv2.cvtColor(image, code)
        elif target in COLOURS:
            raise CvBridgeError(
                f"[{source}] is not a color format, but [{target}] is: the conversion does not make sense"
            )
        elif own != channels:
            raise CvBridgeError(
                f"[{source}] has {own} channels and [{target}] {channels}: they must have the same number"
            )
        return _as_type(image, np.dtype(dtype))


def _as_type(image: Array, dtype: "np.dtype[Any]") -> Array:
    """Another depth: 8 and 16 bits are scaled to each other's range, everything else keeps its values and saturates."""
    if image.dtype == dtype:
        return image
    if dtype.kind == "f":
        return image.astype(dtype)
    scale = {(1, 2): 257.0, (2, 1): 1 / 257.0}.get((image.dtype.itemsize, dtype.itemsize), 1.0)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(image * scale), limits.min, limits.max).astype(dtype)


def _is_little(dtype: np.dtype[Any]) -> bool:
    return dtype.byteorder == "<" or (dtype.byteorder == "=" and sys.byteorder == "little")


def _bytes(image: Array) -> "array.array[int]":
    data = array.array("B")
    data.frombytes(np.ascontiguousarray(image).data.cast("B") if image.size else b"")
    return data
