"""Human Preference Score v2 and v2.1 (Wu et al. 2023, arXiv:2306.09341): 100 x cosine of a CLIP
ViT-H/14 trained on preferences.

Hub: `xswu/HPSv2`, files `HPS_v2_compressed.pt` and `HPS_v2.1_compressed.pt`. Range [-100, 100]; images by current
models score between 20 and 35.

The longer edge is resized to 224 on a tensor, and the original names no antialiasing: torchvision did not antialias
tensors before 0.17 and does since. The two differ by points (users report 28.71 where 30.63 was published for the same
images), so there are two protocols: `/aa` is what the original computes with a current torchvision, `/noaa` what it
computed with the older ones. On a GPU the original runs under fp16 autocast; here precision is `load`'s `dtype`.
"""

from evaluate.preprocess import Preprocess, Resize
from evaluate.scorers import Scorer
from evaluate.weights import Files

REPOSITORY = "xswu/HPSv2"
REVISION = "697403c78157020a1ae59d23f111aa58ced35b0a"
FILES = {"hpsv2.1": "HPS_v2.1_compressed.pt", "hpsv2.0": "HPS_v2_compressed.pt"}
ANTIALIAS = {"aa": True, "noaa": False}

VARIANTS = {
    "hpsv2.1/aa": "HPSv2.1 x 100, antialiased resize (the original with torchvision 0.17 or newer)",
    "hpsv2.1/noaa": "HPSv2.1 x 100, resize without antialiasing (the original with older torchvision)",
    "hpsv2.0/aa": "HPSv2.0 x 100, antialiased resize",
    "hpsv2.0/noaa": "HPSv2.0 x 100, resize without antialiasing",
}
VERIFIED_BY = dict.fromkeys(VARIANTS, "hpsv2 1.2.0")


def load(name: str, files: Files) -> Scorer:
    """`files.path`: a local copy of the variant's `.pt` file, or its folder."""
    from evaluate.scorers._clip import OpenClip, open_clip_model

    version, resize = name.split("/")
    file = files.fetch(REPOSITORY, FILES[version], REVISION, local=files.path)
    prepare = Preprocess(
        size=224, resize=(Resize(size=224, fit="longest"),), library="torch", antialias=ANTIALIAS[resize]
    )
    clip = open_clip_model("ViT-H-14", file, files)
    return OpenClip(name, prepare, clip, scale=100.0, weights_sha256=files.sha256(file))
