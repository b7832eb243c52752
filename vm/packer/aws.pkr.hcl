# An AMI with the agent, from Debian's own: vm/provision.sh runs on a machine that Packer starts for it,
# vm/seal.sh makes that an image. docs/vm.md tells how; it was never built where this was written.
#
#   packer init vm/packer
#   packer build -var agent=build/deb/simagent_0.1.0-1~deb13_amd64.deb vm/packer

packer {
  required_plugins {
    amazon = {
      source  = "github.com/hashicorp/amazon"
      version = ">= 1.3.0"
    }
  }
}

variable "agent" {
  type        = string
  description = "The agent's package, built for this release: make deb RELEASE=trixie."
}

variable "region" {
  type    = string
  default = "eu-west-1"
}

variable "instance_type" {
  type    = string
  default = "c7i.large"
}

variable "debian" {
  type    = string
  default = "13"
}

variable "disk_gb" {
  type    = number
  default = 16
}

variable "apptainer" {
  type        = string
  default     = "apt"
  description = "As vm/provision.sh takes it; a file has to be an URL here."
}

variable "mpi" {
  type    = string
  default = "openmpi-bin"
}

variable "docker" {
  type    = string
  default = "no"
}

variable "images" {
  type        = list(string)
  default     = []
  description = "Files of images of simulators (FILE.sif), to lie in /usr/share/simagent/images."
}

locals {
  there = "/var/tmp/simagent-vm"
}

source "amazon-ebs" "debian" {
  region        = var.region
  instance_type = var.instance_type
  ssh_username  = "admin"
  ami_name      = "simagent-{{timestamp}}"
  imds_support  = "v2.0"

  source_ami_filter {
    # The account that Debian publishes its images from.
    owners      = ["136693071363"]
    most_recent = true
    filters = {
      name                = "debian-${var.debian}-amd64-*"
      root-device-type    = "ebs"
      virtualization-type = "hvm"
    }
  }

  metadata_options {
    http_tokens = "required"
  }

  launch_block_device_mappings {
    device_name           = "/dev/xvda"
    volume_size           = var.disk_gb
    volume_type           = "gp3"
    delete_on_termination = true
  }

  tags = {
    Name = "simagent"
  }
}

build {
  sources = ["source.amazon-ebs.debian"]

  provisioner "shell" {
    # It installs packages, too, on a first boot.
    inline = ["cloud-init status --wait || true", "mkdir -p ${local.there}/images"]
  }

  provisioner "file" {
    sources     = ["${path.root}/../provision.sh", "${path.root}/../seal.sh", "${path.root}/../files", var.agent]
    destination = "${local.there}/"
  }

  provisioner "file" {
    # With none, a file that does no harm there.
    sources     = concat(["${path.root}/../provision.sh"], var.images)
    destination = "${local.there}/images/"
  }

  provisioner "shell" {
    inline = [
      join(" ", [
        "sudo AGENT=${local.there}/${basename(var.agent)} APPTAINER='${var.apptainer}' MPI='${var.mpi}'",
        "DOCKER='${var.docker}' IMAGES=\"$(ls ${local.there}/images/*.sif 2>/dev/null | tr '\\n' ' ')\"",
        "sh ${local.there}/provision.sh",
      ]),
      "sudo sh -c 'cp ${local.there}/seal.sh /run/seal.sh && rm -rf ${local.there} && sh /run/seal.sh'",
    ]
  }
}
