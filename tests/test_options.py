import pytest

from antiphon import options
from antiphon.errors import OptionError
from antiphon.heads import LinearProjector


def test_every_option_says_what_it_is_and_names_a_class_of_this_package():
    for kind in options.kinds():
        for name in options.names(kind):
            assert len(options.summary(kind, name)) > 10, (kind, name)
            if "_target_" in options.values(kind, name):
                assert options.locate(options.values(kind, name)["_target_"]).__module__.startswith("antiphon.")


def test_unknown_names_list_what_there_is_and_the_nearest():
    with pytest.raises(OptionError, match=r"unknown objective 'slop'; there are: clap, .*slap; did you mean 'slap'\?"):
        options.build("objective", "slop")
    with pytest.raises(OptionError, match="unknown kind of option 'objectiv'"):
        options.names("objectiv")


def test_unknown_settings_are_refused():
    with pytest.raises(OptionError, match=r"unknown setting of projector 'linear' 'dimm'.*did you mean 'dim'"):
        options.build("projector", "linear", {"dimm": 3}, in_dim=4)


def test_overrides_win_over_the_file_and_extra_over_both():
    projector = options.build("projector", "linear", {"dim": 3}, in_dim=4)
    assert isinstance(projector, LinearProjector)
    assert projector.linear.weight.shape == (3, 4)


def test_an_option_may_start_from_another():
    demo, default = options.values("trainer", "demo"), options.values("trainer", "default")
    assert demo["_target_"] == default["_target_"]
    assert demo["learning_rate"] != default["learning_rate"]


@pytest.mark.parametrize("target", ["os.system", "subprocess.Popen", "antiphonx.Thing", "builtins.eval"])
def test_nothing_outside_the_package_is_constructed(target):
    with pytest.raises(OptionError, match="outside antiphon"):
        options.locate(target)
