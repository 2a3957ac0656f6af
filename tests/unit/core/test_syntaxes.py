import subprocess
import sys

from pydicom.uid import (
    AllTransferSyntaxes,
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
    MPEGTransferSyntaxes,
)

from service.core.syntaxes import LOSSLESS, LOSSY, OFFERED, UNCOMPRESSED


def test_the_default_transfer_syntax_of_dicom_is_offered() -> None:
    assert ImplicitVRLittleEndian in OFFERED  # PS3.5 10.1: every implementation supports it


def test_a_syntax_without_bound_or_without_decoder_is_not_offered() -> None:
    assert not {DeflatedExplicitVRLittleEndian, JPEGExtended12Bit, *MPEGTransferSyntaxes}.intersection(
        OFFERED
    )


def test_each_offered_syntax_stands_once_in_the_standards_list() -> None:
    assert len(set(OFFERED)) == len(OFFERED)
    assert set(OFFERED) <= set(AllTransferSyntaxes)


def test_only_encapsulated_syntaxes_are_called_lossless_or_lossy() -> None:
    assert all(syntax.is_encapsulated for syntax in LOSSLESS + LOSSY)
    assert not any(syntax.is_encapsulated for syntax in UNCOMPRESSED)


def test_the_list_is_read_without_our_decoder() -> None:
    # pydicom itself loads whatever codecs are installed; ours must not come with the list.
    program = (
        "import sys, service.core.syntaxes; print(sorted({'worker', 'model', 'torch'} & sys.modules.keys()))"
    )

    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert loaded.stdout.strip() == "[]"
