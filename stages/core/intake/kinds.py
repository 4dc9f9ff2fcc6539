"""Which files are images, by name or by content, and which ones nobody put there."""

import re
from pathlib import PurePosixPath

from stages.core.release.predict import EVIDENCE_ENDING, EXTENSIONS

# Bytes of a file that tell its format.
HEAD_BYTES = 140
_STARTS = (
    b"\xff\xd8\xff",  # JPEG
    b"\x89PNG\r\n\x1a\n",
    b"GIF87a", b"GIF89a",
    b"II*\0", b"MM\0*", b"II+\0", b"MM\0+",  # TIFF, BigTIFF and most raw formats
    b"IIRO", b"IIRS", b"IIU\0",  # raw formats of Olympus and Panasonic
    b"II\xbc",  # JPEG XR
    b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51",  # JPEG 2000
    b"\0\0\0\x0cJXL \r\n\x87\n", b"\xff\x0a",  # JPEG XL
    b"8BPS",  # Photoshop
    b"FUJIFILMCCD-RAW", b"FOVb",
    b"SIMPLE  =",  # FITS
    b"v/1\x01",  # OpenEXR
    b"DDS ", b"qoif", b"icns", b"gimp xcf",
)  # fmt: skip
# Brands of ISO media files that are pictures: HEIF, AVIF, Canon's CR3.
_BRANDS = {
    b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1",
    b"crx ",
}  # fmt: skip
# Sizes of the header that follows a BMP file's own.
_BMP_HEADERS = {12, 16, 40, 52, 56, 64, 108, 124}


def is_image_name(name: str) -> bool:
    """Whether a file is an image by the end of its name."""
    return name.lower().endswith(EXTENSIONS)


def is_image_content(head: bytes) -> bool:
    """Whether a file is an image by its first HEAD_BYTES bytes."""
    if head.startswith(_STARTS):
        return True
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return True
    if head[4:8] == b"ftyp" and head[8:12] in _BRANDS:
        return True
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return True
    return head[128:132] == b"DICM"


# What operating systems, storage boxes, cameras, archivers and programs leave in folders, in lower
# case. Names that begin with a dot are left out anyhow.
_LEFT_FOLDERS = {
    "__macosx", "network trash folder", "temporary items", "resource.frk",  # macOS
    "$recycle.bin", "recycler", "system volume information",  # Windows
    "lost+found",  # Linux
    "@eadir", "@tmp", "@sharebin", "#recycle", "#snapshot",  # Synology
    "@recycle", "@recently-snapshot", "@transcode",  # QNAP
    "~snapshot",  # NetApp
    "lost.dir",  # Android
    "paxheader", "paxheaders", "gnusparsefile",  # tar
    "__pycache__",
}  # fmt: skip
# chkdsk counts its folders.
_LEFT_COUNTED = re.compile(r"found\.\d{3}")
_LEFT_FILES = {
    "thumbs.db", "thumbs.db:encryptable", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini",
    "iconcache.db", "icon\r", "icon\uf00d", "picasa.ini", "zbthumbnail.info", "pspbrwse.jbf",
    "synoindex_media_info", "dropbox.device", "nohup.out",
}  # fmt: skip
_LEFT_STARTS = ("~$", "synofile_thumb", "synophoto_thumb", "syno@", "paxheaders.", "gnusparsefile.")
_LEFT_ENDS = (
    ".thm", ".ctg", ".aae", "@synoeastream", "@synoresource", ".lnk", ".crdownload", ".part",
    ".filepart", ".!sync", ".bts", EVIDENCE_ENDING,
)  # fmt: skip


def is_leftover(name: str, *, folder: bool) -> bool:
    """Whether a name (without the folders above it) is none that a person gives to images."""
    low = name.lower()
    if low.startswith((".", *_LEFT_STARTS)):
        return True
    if folder:
        return low in _LEFT_FOLDERS or bool(_LEFT_COUNTED.fullmatch(low))
    return low in _LEFT_FILES or low.endswith(_LEFT_ENDS)


def in_leftover(path: str) -> bool:
    """Whether a path, of a tar's member say, is or lies in what `is_leftover` knows."""
    *above, name = (part for part in PurePosixPath(path).parts if part != "/")
    return is_leftover(name, folder=False) or any(is_leftover(p, folder=True) for p in above)
