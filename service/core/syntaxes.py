"""The transfer syntaxes Hilum offers: exactly those that `worker.decode` turns into a film, and no other.

An SCP that accepts a syntax it cannot read has promised a report that never comes; one it does not offer is
converted by the sender, or sent uncompressed. The listener imports this list without our decoder;
`worker.decode.missing_decoders` holds it against the codecs that are installed.

Left out on purpose:

- Deflated Explicit VR Little Endian: nothing bounds what the data set inflates to before it is parsed
  (200 KB become 400 MB).
- JPEG Extended (Process 2 and 4): radiographs use its 12-bit form, which none of our codecs decodes;
  pydicom's plugin for it is under the GPL.
- MPEG and HEVC: video.
- JPIP, SMPTE ST 2110 and encapsulated uncompressed: no pixel data in the file, or not seen for radiographs.
"""

from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

UNCOMPRESSED: tuple[UID, ...] = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)
"""Native pixel data (PS3.5 A.1 to A.3), the cheapest to decode first."""

LOSSLESS: tuple[UID, ...] = (
    JPEGLosslessSV1,
    JPEGLossless,
    JPEGLSLossless,
    JPEG2000Lossless,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    RLELossless,
)
"""Encapsulated and reversible by definition (PS3.5 A.4): decoding gives the stored values bit by bit."""

LOSSY: tuple[UID, ...] = (JPEGBaseline8Bit, JPEGLSNearLossless, JPEG2000, HTJ2K)
"""Encapsulated, and lossy unless the encoder chose otherwise."""

OFFERED: tuple[UID, ...] = UNCOMPRESSED + LOSSLESS + LOSSY
"""Everything the listener accepts for a storage context, in our order of preference."""
