import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage import errors
from moorage.oci.reference import Reference, local_name, parse_reference

pytestmark = pytest.mark.quick

briefly = settings(database=None, deadline=None, max_examples=100)
DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "full", "familiar", "local"),
    [
        ("x", "docker.io/library/x", "x", "x:latest"),
        ("x:v1", "docker.io/library/x:v1", "x:v1", "x:v1"),
        ("library/x", "docker.io/library/x", "x", "x:latest"),
        ("vieux/sshfs", "docker.io/vieux/sshfs", "vieux/sshfs", "vieux/sshfs:latest"),
        ("docker.io/vieux/sshfs:next", "docker.io/vieux/sshfs:next", "vieux/sshfs:next", "vieux/sshfs:next"),
        ("index.docker.io/vieux/sshfs", "docker.io/vieux/sshfs", "vieux/sshfs", "vieux/sshfs:latest"),
        ("docker.io/x", "docker.io/library/x", "x", "x:latest"),
        ("library/a/b", "docker.io/library/a/b", "library/a/b", "library/a/b:latest"),
        ("localhost/x", "localhost/x", "localhost/x", "localhost/x:latest"),
        ("localhost:5000", "docker.io/library/localhost:5000", "localhost:5000", "localhost:5000"),
        (
            "127.0.0.1:5000/t/sshfs:v1",
            "127.0.0.1:5000/t/sshfs:v1",
            "127.0.0.1:5000/t/sshfs:v1",
            "127.0.0.1:5000/t/sshfs:v1",
        ),
        ("[::1]:5000/a", "[::1]:5000/a", "[::1]:5000/a", "[::1]:5000/a:latest"),
        ("REG.example:443/a", "REG.example:443/a", "REG.example:443/a", "REG.example:443/a:latest"),
        ("docker.io/a.b/c", "docker.io/a.b/c", "docker.io/a.b/c", "docker.io/a.b/c:latest"),
        (f"library/{'f' * 64}", *[f"docker.io/library/{'f' * 64}"] * 2, f"docker.io/library/{'f' * 64}:latest"),
        ("a/b__c.d-e--f", "docker.io/a/b__c.d-e--f", "a/b__c.d-e--f", "a/b__c.d-e--f:latest"),
        (f"x@{DIGEST}", f"docker.io/library/x@{DIGEST}", f"x@{DIGEST}", "x:latest"),
        (f"h:1/x:v1@{DIGEST}", f"h:1/x:v1@{DIGEST}", f"h:1/x:v1@{DIGEST}", "h:1/x:v1"),
    ],
)
def test_c09_all_combinations_of_host_name_tag_and_digest(text: str, full: str, familiar: str, local: str) -> None:
    reference = parse_reference(text)
    assert (str(reference), reference.familiar, reference.local_name) == (full, familiar, local)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it has no name"),
        (":v1", "it has no name"),
        (f"@{DIGEST}", "it has no name"),
        ("UPPER/x", "failed to parse reference UPPER/x: invalid reference format: repository name must be lowercase"),
        ("a b", "it has characters that no name has"),
        ("a//b", "it has characters that no name has"),
        ("/a", "it has characters that no name has"),
        ("a/", "it has characters that no name has"),
        ("a___b", "it has characters that no name has"),
        ("-a.b/x", '"-a.b" is not the name of a registry'),
        ("h:port/x", '"h:port" is not the name of a registry'),
        ("x:", '"" is not a tag'),
        ("x:.v", '".v" is not a tag'),
        ("x:" + "t" * 129, "is not a tag"),
        ("x:ä", "is not a tag"),
        ("x@sha256:12", "a sha256 digest has 64 hexadecimal digits"),
        (f"x@{DIGEST.upper()}", "its digest must be sha256, sha384 or sha512"),
        ("x@md5:" + "0" * 32, "its digest must be sha256, sha384 or sha512"),
        ("x@", "its digest must be"),
        (f"x@{DIGEST}@{DIGEST}", "a sha256 digest has 64"),
        ("f" * 64, "they would be taken for an id"),
        ("a/" + "b" * 255, "longer than 255"),
        ("x\n", "it has characters that no name has"),
        ("x:v\n", "is not a tag"),
    ],
)
def test_c09_a_bad_reference_is_refused_with_the_part_that_is_wrong(text: str, reason: str) -> None:
    with pytest.raises(errors.Invalid) as caught:
        parse_reference(text)
    assert reason in str(caught.value)


def test_c09_a_name_on_this_host_always_has_a_tag_and_never_a_digest() -> None:
    assert [local_name(each) for each in ("sfs", "sfs:1", "h:5/a")] == ["sfs:latest", "sfs:1", "h:5/a:latest"]
    with pytest.raises(errors.Invalid, match="cannot use digest in plugin tag"):
        local_name(f"sfs:1@{DIGEST}")


def test_c09_the_default_tag_is_given_only_where_nothing_else_says_which() -> None:
    assert parse_reference("x").with_default_tag().tag == "latest"
    assert parse_reference("x:1").with_default_tag().tag == "1"
    assert parse_reference(f"x@{DIGEST}").with_default_tag().tag is None


part = st.sampled_from(["a", "b0", "c.d", "e__f", "g--h", "library", "localhost", "0.0", "f" * 64])
references = st.builds(
    Reference,
    st.sampled_from(["docker.io", "localhost", "localhost:5000", "r.example", "[fe80::1]:443"]),
    st.lists(part, min_size=2, max_size=3).map("/".join),
    st.none() | st.sampled_from(["v1", "_", "1.2-rc_3", "T" * 128]),
    st.none() | st.just(DIGEST),
)


@briefly
@given(references)
def test_c09_both_forms_read_back_as_the_same_reference(reference: Reference) -> None:
    assert parse_reference(str(reference)) == reference
    assert parse_reference(reference.familiar) == reference
    assert parse_reference(reference.local_name).local_name == reference.local_name


@briefly
@given(st.text("aZ09.:/@_-[] \nlocalhostsha256", max_size=40) | st.text(max_size=20))
def test_c09_any_text_is_a_reference_or_invalid(text: str) -> None:
    try:
        reference = parse_reference(text)
    except errors.Invalid:
        return
    assert parse_reference(str(reference)) == reference
