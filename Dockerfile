# The detector on a ROS 2 distribution, as README.md sets it up; docs/container.md says how to start it.
ARG ROS_DISTRO=jazzy
FROM ros:${ROS_DISTRO}-ros-base

# The host's user: Fast DDS shares memory only between processes of one user, and files written are the host's.
ARG HOST_UID=1000
ARG HOST_GID=1000
# Ubuntu's images from 24.04 on bring a user with 1000.
RUN if id ubuntu > /dev/null 2>&1; then userdel --remove ubuntu; fi \
    && groupadd --non-unique --gid "$HOST_GID" robot \
    && useradd --non-unique --uid "$HOST_UID" --gid "$HOST_GID" --create-home --shell /bin/bash robot

# The manifest alone first: as long as it stays, so do the layers of rosdep and pip.
WORKDIR /ws
COPY package.xml requirements.ros.txt src/rscmd_ros/
# The versions are the distribution's to choose.
# hadolint ignore=DL3008
RUN apt-get update \
    && rosdep update --rosdistro "$ROS_DISTRO" \
    && . "/opt/ros/$ROS_DISTRO/setup.sh" \
    && rosdep install --from-paths src --ignore-src -y \
        --skip-keys "python3-pytorch-pip python3-rosbags-pip python3-ultralytics-pip" \
    && rm -rf /var/lib/apt/lists/*

# With it first on PATH and active, `python` is its Python, and so is that of the commands that colcon installs.
ENV VIRTUAL_ENV=/opt/venv
ENV PATH=/opt/venv/bin:$PATH
# torch without CUDA: --build-arg PIP_EXTRA_INDEX_URL= with PyTorch's CPU index.
ARG PIP_EXTRA_INDEX_URL
RUN python3 -m venv --system-site-packages /opt/venv \
    && python -m pip install --no-cache-dir -r src/rscmd_ros/requirements.ros.txt

COPY . src/rscmd_ros/
RUN chown -R "$HOST_UID:$HOST_GID" /ws \
    && printf '%s\n' "source /opt/ros/$ROS_DISTRO/setup.bash" "source /ws/install/setup.bash" >> /home/robot/.bashrc
USER $HOST_UID:$HOST_GID
RUN . "/opt/ros/$ROS_DISTRO/setup.sh" && colcon build

# ros2 launch hands SIGINT on to the node; by SIGTERM, Docker's own choice, it ends alone.
STOPSIGNAL SIGINT
ENTRYPOINT ["/bin/bash", "-c", "source /opt/ros/$ROS_DISTRO/setup.bash && source /ws/install/setup.bash && exec \"$@\"", "--"]
CMD ["ros2", "launch", "rscmd_ros", "detector.launch.py", "model:=/model/model.safetensors"]
