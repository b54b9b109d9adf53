"""
Autograding in sandboxes: every submission runs under the profile `grading`, whatever kernel it names.

Copy it into the course's folder, or append it to the nbgrader_config.py that is there, once after

    jupyter isolated install --profile grading
"""

from nbclient.exceptions import DeadKernelError
from nbformat.v4 import new_output
from nbgrader.converters import Autograde
from nbgrader.preprocessors import Execute

c = get_config()  # noqa: F821 - nbgrader's

# What a submission says of its kernel is not asked: this name is, and its kernelspec says what kernels may have.
c.Execute.kernel_name = "isolated-python-grading"
c.Execute.timeout = 60  # seconds, of one cell; then it is interrupted, and the next is run


class ExecuteToTheEnd(Execute):
    """A kernel that is killed, for memory say, costs a submission the cell it was killed in and those after.

    nbgrader would drop the whole submission. A test that never ran must hold an error, since one without any output
    has passed.
    """

    over = ""

    def preprocess_cell(self, cell, resources, index):
        if not self.over:
            try:
                return super().preprocess_cell(cell, resources, index)
            except DeadKernelError:
                told = [output.evalue for output in cell.outputs if output.output_type == "error"]
                self.over = told[-1] if told else "the kernel died"
                self.log.error("From cell %d on nothing ran: %s", index + 1, self.over)
                if told:
                    return cell, resources
        if cell.cell_type == "code":
            words = f"not run: {self.over}"
            cell.outputs = [new_output("error", ename="KernelDied", evalue=words, traceback=[words])]
        return cell, resources


c.Autograde.autograde_preprocessors = [
    ExecuteToTheEnd if step is Execute else step for step in Autograde.autograde_preprocessors.default_args[0]
]
